"""From an `ml_collections.ConfigDict` to frozen dataclasses, in one place.

Every component declares its options as a frozen dataclass beside its code. A component that is chosen by name
(a model, an objective, a corpus, an evaluator …) registers its dataclass in a `Registry`; the field that holds such
a choice is annotated `Annotated[Any, REGISTRY]` and its config node carries a `name` key.

`resolve(schema, node)` turns a config node into the dataclass. Whatever is wrong is one `ConfigError`: a sentence
that names the key, the value, what would be valid and, for a misspelt key or name, the nearest one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import ml_collections

from jaxvl import paths


class ConfigError(ValueError):
    """A config value that cannot be used.

    Raised inside a dataclass's `__post_init__` with the name of its own field; `resolve` puts the path before it.

    Attributes:
      key: path of the key, relative to whoever raised it (`"optim.lr"`).
      problem: the rest of the sentence: the value and what would be valid.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem

    def under(self, path: str) -> ConfigError:
        """The same error seen from one level further out."""
        return ConfigError(f"{path}.{self.key}" if path else self.key, self.problem)


def nearest(word: str, known: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` where something known is close to `word`, else an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check(ok: bool, key: str, problem: str) -> None:
    """Raises `ConfigError(key, problem)` unless `ok`."""
    if not ok:
        raise ConfigError(key, problem)


def to_path(text: str | os.PathLike, key: str) -> paths.Path:
    """The path that a text of a config or a command line names, local or remote. Raises ConfigError where it can be none."""
    try:
        return paths.as_path(text)
    except paths.PathError as error:
        raise ConfigError(key, str(error)) from None


class Registry(Mapping):
    """Names of one kind of component -> the frozen dataclass that configures it.

    Registering is one decorator above the dataclass; modules named in `load` are imported at the first look-up, so
    that a config can name a component without anyone importing its file.
    """

    def __init__(self, kind: str, load: Sequence[str] = ()):
        self.kind, self._entries, self._load = kind, {}, list(load)

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator. Raises KeyError if `name` is taken by another class."""

        def add(cls: type) -> type:
            old = self._entries.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
                raise KeyError(f"{self.kind} {name!r} is already registered by {old.__module__}.{old.__qualname__}")
            if not dataclasses.is_dataclass(cls):
                raise TypeError(f"{self.kind} {name!r}: {cls.__qualname__} must be a (frozen) dataclass")
            self._entries[name] = cls
            cls.registered_name = name
            return cls

        return add

    def _loaded(self) -> dict[str, type]:
        while self._load:
            importlib.import_module(self._load.pop())
        return self._entries

    def __getitem__(self, name: str) -> type:
        return self._loaded()[name]

    def __iter__(self):
        return iter(sorted(self._loaded()))

    def __len__(self) -> int:
        return len(self._loaded())

    def lookup(self, name: Any, path: str) -> type:
        """Like `[]`, but raises a `ConfigError` at `path` that lists what is known."""
        if not isinstance(name, str) or name not in self:
            hint = nearest(name, list(self))
            raise ConfigError(path, f"{name!r} is not a known {self.kind}{hint} (known: {', '.join(self)})")
        return self[name]


# ---------------------------------------------------------------------------------------------------------------------
# ConfigDict -> dataclass


def resolve(schema: type, node: Mapping | ml_collections.ConfigDict, path: str = "") -> Any:
    """The frozen dataclass `schema` filled from `node`.

    Args:
      schema: a dataclass; keys that `node` lacks take the dataclass's default.
      node: a mapping (ConfigDict or dict).
      path: where `node` stands in the config, for messages.

    Raises:
      ConfigError: unknown key, missing key, wrong type, or a value that the dataclass itself refuses.
    """
    if isinstance(node, schema):
        return node
    if isinstance(node, ml_collections.ConfigDict):
        node = node.to_dict()
    if not isinstance(node, Mapping):
        raise ConfigError(path or "config", f"{node!r} must be a group of keys ({', '.join(_names(schema))})")
    known = _names(schema)
    for key in node:
        if key not in known:
            raise ConfigError(_join(path, key), f"unknown key{nearest(key, known)} (valid: {', '.join(known)})")
    hints = typing.get_type_hints(schema, include_extras=True)
    values = {}
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        if field.name in node:
            values[field.name] = _convert(hints[field.name], node[field.name], _join(path, field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(_join(path, field.name), f"is required ({_describe(hints[field.name])})")
    try:
        return schema(**values)
    except ConfigError as error:
        raise error.under(path) from None


def resolve_call(function: Callable, node: Mapping[str, Any], path: str, given: Sequence[str] = ()) -> dict[str, Any]:
    """Keyword arguments of `function` from `node`, converted as its annotations say.

    Args:
      given: keyword-only arguments that are not for a config to set.

    Raises:
      ConfigError: one that is not a keyword-only argument of `function`, or of the wrong type.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given]
    for key in node:
        valid = f"(valid: {', '.join(known)})" if known else "(it has none)"
        check(key in known, _join(path, key), f"is no option of {function.__qualname__}{nearest(key, known)} {valid}")
    hints = typing.get_type_hints(function, include_extras=True)
    return {key: _convert(hints.get(key, Any), value, _join(path, key)) for key, value in node.items()}


def to_dict(value: Any) -> Any:
    """The plain nested dict (JSON-able) of a resolved config; `resolve` of it gives the same dataclass again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        name = getattr(type(value), "registered_name", None)
        return {"name": name, **out} if name else out
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    return [to_dict(v) for v in value] if isinstance(value, (tuple, list)) else value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _names(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema) if f.init]


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        registry = _registry(hint)
        return f"a {registry.kind}: {', '.join(registry)}" if registry else _describe(typing.get_args(hint)[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    if hint is type(None):
        return "None"
    return {int: "an integer", float: "a number", bool: "True or False", str: "a text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _registry(hint: Any) -> Registry | None:
    return next((a for a in typing.get_args(hint)[1:] if isinstance(a, Registry)), None)


def _convert(hint: Any, value: Any, path: str) -> Any:  # noqa: PLR0911 (one return per kind of annotation)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        registry = _registry(hint)
        return choose(registry, value, path) if registry is not None else _convert(args[0], value, path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
        return _convert(options[-1], value, path)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise ConfigError(path, f"{value!r} is not valid; {_describe(hint)}{nearest(value, args)}")
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"{value!r} must be a group of named entries")
        return {str(k): _convert(args[1], v, _join(path, k)) for k, v in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(path, f"{value!r} must be {_describe(hint)}")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(path, f"{value!r} must have exactly {len(args)} entries")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    if dataclasses.is_dataclass(hint):
        return resolve(hint, value, path)
    return _scalar(hint, value, path)


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(path, f"{value!r} is {_kind(value)}; must be {_describe(hint)}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def choose(registry: Registry, node: Any, path: str) -> Any:
    """The registered dataclass that `node["name"]` (or a bare name) chooses, filled from the other keys."""
    if dataclasses.is_dataclass(node):
        return node
    if isinstance(node, str):
        node = {"name": node}
    if not isinstance(node, Mapping):
        raise ConfigError(path, f"{node!r} must be a {registry.kind}'s name or a group with a 'name'")
    if "name" not in node:
        raise ConfigError(_join(path, "name"), f"is required (known: {', '.join(registry)})")
    cls = registry.lookup(node["name"], _join(path, "name"))
    return resolve(cls, {k: v for k, v in node.items() if k != "name"}, path)


# ---------------------------------------------------------------------------------------------------------------------
# Files, their argument string, and overrides from the command line


def load_file(spec: str) -> ml_collections.ConfigDict:
    """`get_config(arg)` of the file in `spec` = `path/to/config.py` or `path/to/config.py:arg`.

    Raises ConfigError if the file is missing or defines no `get_config`.
    """
    scheme = paths.scheme_of(spec)
    start = 0 if scheme is None else len(f"{scheme}://")
    name, _, arg = spec[start:].partition(":")
    path = spec[:start] + name
    file = to_path(path, "--config")
    if not paths.is_file(file):
        known = [str(other) for other in paths.list_folder(file.parent, "*.py")]
        raise ConfigError("--config", f"no file {path!r}{nearest(path, known)}" + (f" (here: {', '.join(known)})" if known else ""))
    module = types.ModuleType(f"jaxvl_config_{file.stem}")
    module.__file__ = str(file)
    exec(compile(paths.read_bytes(file), str(file), "exec"), vars(module))
    if not hasattr(module, "get_config"):
        raise ConfigError("--config", f"{path!r} defines no get_config()")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError("--config", f"{path!r}: get_config() returned {type(config).__name__}, must be a ConfigDict")
    return config


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
    """Reads the argument string after a config file: `variant=b7,long` -> namespace over `defaults`.

    A bare word sets its key to True. Values take the type of their default.

    Raises ConfigError for an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for part in filter(None, arg.split(",")):
        key, has_value, text = part.partition("=")
        if key not in defaults:
            known = sorted(defaults)
            raise ConfigError(f"--config=…:{key}", f"unknown argument{nearest(key, known)} (valid: {', '.join(known)})")
        value = _literal(text) if has_value else True
        wanted = type(defaults[key])
        if wanted is str:
            value = text if has_value else part
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise ConfigError(f"--config=…:{key}", f"{text!r} must be {_describe(wanted)}")
        values[key] = value
    return types.SimpleNamespace(**values)


def override(config: ml_collections.ConfigDict, assignments: Mapping[str, str]) -> ml_collections.ConfigDict:
    """A copy of `config` with `{"optim.lr": "1e-3"}` applied; values are Python literals, else texts.

    Keys need not be written in the config file: whether they exist is for `resolve` to say.
    """
    config = ml_collections.ConfigDict(config.to_dict(), convert_dict=True)
    for path, text in assignments.items():
        *parents, last = path.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ml_collections.ConfigDict()
            elif not isinstance(node[parent], ml_collections.ConfigDict):
                # A shorthand (`objectives.align = 1.0`, `model = "align"`) opened by the override.
                short = node[parent]
                with node.ignore_type():
                    node[parent] = ml_collections.ConfigDict({"name": short} if isinstance(short, str) else {"weight": short})
            node = node[parent]
        with node.ignore_type():
            node[last] = _literal(text)
    return config


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
