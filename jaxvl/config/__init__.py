"""From an `ml_collections.ConfigDict` to frozen dataclasses, in one place.

Every component declares its options as a frozen dataclass beside its code. A component that is
chosen by name (a model, an objective, a corpus, an evaluator …) registers its dataclass in a
`Registry`; the field that holds such a choice is annotated `Annotated[Any, REGISTRY]` and its
config node carries a `name` key.

`resolve(schema, node)` turns a config node into the dataclass. Whatever is wrong is one
`ConfigError`: a sentence that names the key, the value, what would be valid and, for a misspelt key
or name, the nearest one.

    errors     ConfigError and its sentences
    bounds     what a number may be, as data on the fields
    registry   components by name, found without importing them
    schema     ConfigDict -> dataclass -> plain dict
    files      config files, their argument string, overrides from the command line
    plugins    a user's own files and modules, which register components
"""

from jaxvl.config.bounds import (
    Batch,
    Count,
    Depth,
    Epsilon,
    Heads,
    Hidden,
    NonEmpty,
    PathText,
    Pixels,
    Range,
    Scale,
    Seed,
    Steps,
    Threads,
    TokenId,
    Tokens,
    VocabularySize,
    Weight,
    Width,
)
from jaxvl.config.errors import ConfigError, check, nearest, to_path
from jaxvl.config.files import load_file, override, parse_arg
from jaxvl.config.plugins import (
    Plugin,
    PluginWarning,
    load_plugins,
    loaded_plugins,
    plugin_changes,
    recall_plugins,
)
from jaxvl.config.registry import Registry
from jaxvl.config.schema import choose, convert, resolve, resolve_call, to_dict

__all__ = [
    "Batch",
    "ConfigError",
    "Count",
    "Depth",
    "Epsilon",
    "Heads",
    "Hidden",
    "NonEmpty",
    "PathText",
    "Pixels",
    "Plugin",
    "PluginWarning",
    "Range",
    "Registry",
    "Scale",
    "Seed",
    "Steps",
    "Threads",
    "TokenId",
    "Tokens",
    "VocabularySize",
    "Weight",
    "Width",
    "check",
    "choose",
    "convert",
    "load_file",
    "load_plugins",
    "loaded_plugins",
    "nearest",
    "to_path",
    "override",
    "parse_arg",
    "plugin_changes",
    "recall_plugins",
    "resolve",
    "resolve_call",
    "to_dict",
]
