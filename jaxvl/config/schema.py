"""ConfigDict -> dataclass -> plain dict."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

import ml_collections

from jaxvl.aliases import Leaf, Node
from jaxvl.config.bounds import FLOAT32, INT32, INT64, NonEmpty, Range
from jaxvl.config.errors import ConfigError, check, nearest, one_line, shown
from jaxvl.config.registry import Registry

Resolved = TypeVar("Resolved")
Annotation = Any  # what a field of a dataclass is annotated with: a class, a union, `Annotated[…]`
Component = Any  # a registered dataclass; which base or protocol it has, its registry knows

MOST_NESTED = 64  # groups in groups in lists of an option of any type


def resolve(
    schema: type[Resolved], node: Node | ml_collections.ConfigDict, path: str = ""
) -> Resolved:
    """The frozen dataclass `schema` filled from `node`.

    Args:
      schema: a dataclass; keys that `node` lacks take the dataclass's default. One with a class
        method `before_resolving(node) -> node` is asked first.
      node: a mapping (ConfigDict or dict).
      path: where `node` stands in the config, for messages.

    Raises:
      ConfigError: unknown key, missing key, wrong type, a number out of bounds, or a value that the
        dataclass itself refuses.
    """
    if isinstance(node, schema):
        return node
    if isinstance(node, ml_collections.ConfigDict):
        node = plain_dict(node, path)
    if not isinstance(node, Mapping):
        raise ConfigError(
            path or "config", f"{shown(node)} must be a group of keys ({', '.join(_names(schema))})"
        )
    if hasattr(schema, "before_resolving"):
        node = schema.before_resolving(node)
    known = _names(schema)
    for key in node:
        if key not in known:
            raise ConfigError(
                _join(path, key), f"unknown key{nearest(key, known)} (valid: {', '.join(known)})"
            )
    hints = _hints(schema)
    values = {}
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        if field.name in node:
            values[field.name] = convert(
                hints[field.name], node[field.name], _join(path, field.name)
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                _join(path, field.name), f"is required ({describe(hints[field.name])})"
            )
    try:
        return schema(**values)
    except ConfigError as error:
        raise error.under(path) from None


def resolve_call(
    function: Callable, node: Node, path: str, given: Sequence[str] = ()
) -> dict[str, Leaf]:
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
        check(
            key in known,
            _join(path, key),
            f"is no option of {function.__qualname__}{nearest(key, known)} {valid}",
        )
    hints = _hints(function)
    return {
        key: convert(hints.get(key, Any), value, _join(path, key)) for key, value in node.items()
    }


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    """Annotations of a class or function, with what they are annotated with."""
    return typing.get_type_hints(annotated, include_extras=True)


def to_dict(value: Leaf) -> Leaf:
    """The plain nested dict (JSON-able) of a resolved config; `resolve` of it gives the same
    dataclass again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        name = getattr(type(value), "registered_name", None)
        return {"name": name, **out} if name else out
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    return [to_dict(v) for v in value] if isinstance(value, (tuple, list)) else value


def choose(registry: Registry, node: Leaf, path: str) -> Component:
    """The registered dataclass that `node["name"]` (or a bare name) chooses, filled from the other
    keys."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return node
    if isinstance(node, str):
        node = {"name": node}
    if not isinstance(node, Mapping):
        raise ConfigError(
            path, f"{shown(node)} must be a {registry.kind}'s name or a group with a 'name'"
        )
    if "name" not in node:
        raise ConfigError(_join(path, "name"), f"is required (known: {', '.join(registry)})")
    cls = registry.lookup(node["name"], _join(path, "name"))
    return resolve(cls, {k: v for k, v in node.items() if k != "name"}, path)


def convert(hint: Annotation, value: Leaf, path: str) -> Leaf:  # noqa: PLR0911 (one return per kind of annotation)
    """`value` as the annotation `hint` has it. Raises ConfigError at `path` for one of another type
    or out of bounds."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if isinstance(value, ml_collections.ConfigDict):
        value = plain_dict(value, path)
    if hint is Any:
        return _of_any_type(value, path)
    if origin is Annotated:
        return _annotated(args[0], args[1:], value, path)
    if origin in (Union, types.UnionType):
        return _one_of(args, value, path)
    if origin is Literal:
        if value is None and None not in args and "none" in args:
            return "none"  # as `--config.model.image.remat=none` is read
        if any(type(value) is type(a) and value == a for a in args):
            return value
        raise ConfigError(
            path, f"{shown(value)} is not valid; {describe(hint)}{nearest(value, args)}"
        )
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"{shown(value)} must be a group of named entries")
        return {str(k): convert(args[1], v, _join(path, k)) for k, v in value.items()}
    if origin is tuple:
        return _tuple(hint, args, value, path)
    if dataclasses.is_dataclass(hint):
        return resolve(hint, value, path)
    return _scalar(hint, value, path)


def _annotated(hint: Any, notes: Sequence[Any], value: Any, path: str) -> Any:
    """A value of a type that is annotated with a registry, bounds, or that it may not be empty."""
    for note in notes:
        if isinstance(note, Registry):
            return choose(note, value, path)
        if isinstance(note, Range):
            return _scalar(hint, value, path, note)
    text = convert(hint, value, path)
    has_null = isinstance(text, str) and "\0" in text
    check(not has_null, path, f"{shown(value)} holds a null character, which no name has")
    for note in notes:
        if isinstance(note, NonEmpty):
            check(len(text) > 0, path, f"is empty; must be {note.what}")
    return text


def _one_of(hints: Sequence[Any], value: Any, path: str) -> Any:
    """A value of the first of several types that fits; what is wrong is said of the last one."""
    if value is None and type(None) in hints:
        return None
    options = [hint for hint in hints if hint is not type(None)]
    for option in options[:-1]:
        try:
            return convert(option, value, path)
        except ConfigError:
            continue
    return convert(options[-1], value, path)


def _tuple(hint: Any, args: Sequence[Any], value: Any, path: str) -> tuple:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigError(path, f"{shown(value)} must be {describe(hint)}")
    if args[-1] is Ellipsis:
        return tuple(convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(path, f"{shown(value)} must have exactly {len(args)} entries")
    return tuple(convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))


def _scalar(hint: type, value: Any, path: str, bounds: Range | None = None) -> Any:
    if (
        hint in (int, float)
        and isinstance(value, (int, float) if hint is float else int)
        and not isinstance(value, bool)
    ):
        _check_finite(value, path)
        bounds = bounds or (FLOAT32 if hint is float else INT32)
        check(value in bounds, path, f"{shown(value)} must be {bounds}")
        return hint(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    wanted = describe(hint) if bounds is None else f"{describe(hint)} {bounds}"
    raise ConfigError(path, f"{shown(value)} is {_kind(value)}; must be {wanted}")


def _of_any_type(value: Any, path: str, depth: int = 0) -> Any:
    """The value itself. Raises ConfigError where a number in it is not finite, or an integer needs
    more than 64 bits."""
    check(depth <= MOST_NESTED, path, f"is nested more than {MOST_NESTED} deep")
    if isinstance(value, float):
        _check_finite(value, path)
    elif isinstance(value, int):
        check(value in INT64, path, f"{shown(value)} must be {INT64}")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _of_any_type(part, _join(path, key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            _of_any_type(part, f"{path}[{i}]", depth + 1)
    return value


def _check_finite(value: float, path: str) -> None:
    finite = isinstance(value, int) or math.isfinite(value)
    check(finite, path, f"{shown(value)} is not finite; must be a number that is")


def plain_dict(node: ml_collections.ConfigDict, path: str) -> dict[str, Leaf]:
    """Raises ConfigError where the config file has left a placeholder open."""
    try:
        return node.to_dict()
    except ml_collections.config_dict.RequiredValueError as error:
        raise ConfigError(
            path or "config", f"has a placeholder without a value: {one_line(error)}"
        ) from None


def describe(hint: Annotation) -> str:
    """What an annotation takes, for messages."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _describe_annotated(typing.get_args(hint))
    if origin is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in typing.get_args(hint))
    if origin is tuple:
        return f"a list of {describe(typing.get_args(hint)[0])}"
    if hint is type(None):
        return "None"
    return {int: "an integer", float: "a number", bool: "True or False", str: "a text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _describe_annotated(args: Sequence[Any]) -> str:
    for note in args[1:]:
        if isinstance(note, Registry):
            return f"a {note.kind}: {', '.join(note)}"
        if isinstance(note, Range):
            return f"{describe(args[0])} {note}"
        if isinstance(note, NonEmpty):
            return note.what
    return describe(args[0])


def _join(path: str, key: Any) -> str:
    return one_line(f"{path}.{key}" if path else key)


def _names(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema) if f.init]


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
