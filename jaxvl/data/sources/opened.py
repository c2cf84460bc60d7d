"""The opened sources of this process: each config is opened once."""

from __future__ import annotations

import json

from jaxvl.config import to_dict
from jaxvl.data.folders import cache_folder
from jaxvl.data.sources.base import Log, Source, SourceConfig

_OPENED: dict[str, Source] = {}  # `key_of` a config -> source


def key_of(config: SourceConfig) -> str:
    """Equal configs have equal keys; a config of mappings has no hash of its own."""
    kind = type(config)
    return json.dumps(
        [str(cache_folder()), kind.__module__, kind.__qualname__, to_dict(config)],
        sort_keys=True,
        default=repr,
    )


def opened(config: SourceConfig, log: Log = print) -> Source:
    """The source of a config; the first call opens it."""
    key = key_of(config)
    if key not in _OPENED:
        _OPENED[key] = config.open(log=log)
    return _OPENED[key]


def forget() -> None:
    """Drops the sources of an earlier run in this process: a run that begins opens its own anew."""
    _OPENED.clear()
