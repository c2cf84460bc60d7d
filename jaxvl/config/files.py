"""Config files, their argument string, and overrides from the command line."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxvl import paths
from jaxvl.aliases import Leaf
from jaxvl.config.errors import ConfigError, check, nearest, one_line, shown, to_path
from jaxvl.config.plugins import beside
from jaxvl.config.running import calling, run_file
from jaxvl.config.schema import convert, plain_dict

BETWEEN_PARTS = re.compile(r",(?![^{}]*\})")  # a comma that no brace closes after


def load_file(spec: str) -> ml_collections.ConfigDict:
    """`get_config(arg)` of the file in `spec` = `path/to/config.py` or `path/to/config.py:arg`.

    Plugins that the config names by a relative path are those beside the file, where there are
    such.

    Raises:
      ConfigError: the file is missing, is no Python, defines no `get_config`, or fails; one line
        with the file and its line.
    """
    path, arg = _split(spec)
    module = run_file(_read(path), path, f"jaxvl_config_{pathlib.PurePath(path).stem}", "--config")
    get_config = getattr(module, "get_config", None)
    check(callable(get_config), "--config", f"{path!r} defines no get_config()")
    given = (arg,) if arg else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wants = "takes no argument" if arg else "needs an argument"
        form = f"--config={path}" if arg else f"--config={path}:ARGUMENT"
        raise ConfigError("--config", f"{path!r}: get_config() {wants}; must be {form}") from None
    except ValueError:
        pass  # a callable without a signature
    config = calling(lambda: get_config(*given), path, "--config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            "--config",
            f"{path!r}: get_config() returned {type(config).__name__}, must be a ConfigDict",
        )
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ml_collections.ConfigDict(config)
    if config.get("plugins") and not paths.is_remote(
        path
    ):  # beside a remote config there is nothing to import
        with config.unlocked(), config.ignore_type():
            config.plugins = beside(pathlib.Path(path).parent, config.plugins)
    return config


def _split(spec: str) -> tuple[str, str]:
    """(path, argument) of `path:argument`; the colon of `scheme://` is the path's."""
    scheme, path, arg = re.fullmatch(r"(\w+://)?([^:]*):?(.*)", spec, re.DOTALL).groups()
    return (scheme or "") + path, arg


def _read(path: str) -> bytes:
    """The file's bytes. Raises ConfigError, which names its neighbours where there is no such
    file."""
    file = to_path(path, "--config")
    try:
        check(not paths.is_folder(file), "--config", f"{path!r} is a folder; must be a Python file")
        return paths.read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        here = [str(other) for other in paths.list_folder(file.parent, "*.py")]
        listed = f" (here: {', '.join(here)})" if here else ""
        raise ConfigError("--config", f"no file {path!r}{nearest(path, here)}{listed}") from None
    except (OSError, ValueError) as error:  # no permission; a name that no file can have
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("--config", f"{shown(path)} cannot be read: {one_line(error)}") from None


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
    """Reads the argument string after a config file: `variant=b7,long` -> namespace over
    `defaults`.

    A bare word sets its key to True. Values take the type of their default. Commas in braces,
    `data=/data/{a,b}.tar`, are a value's own.

    Raises ConfigError for an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for part in filter(None, BETWEEN_PARTS.split(arg)):
        key, has_value, text = part.partition("=")
        if key not in defaults:
            known = sorted(defaults)
            raise ConfigError(
                f"--config=…:{one_line(key)}",
                f"unknown argument{nearest(key, known)} (valid: {', '.join(known)})",
            )
        wanted = type(defaults[key])
        if wanted is str:
            values[key] = text if has_value else part
        else:
            value = literal(text) if has_value else True
            values[key] = convert(wanted, value, f"--config=…:{key}")
    return types.SimpleNamespace(**values)


def override(
    config: ml_collections.ConfigDict, assignments: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """A copy of `config` with `{"optim.lr": "1e-3"}` applied; values are Python literals, else
    texts.

    Keys need not be written in the config file: whether they exist is for `resolve` to say.

    Raises ConfigError for a path that no key can have, or a placeholder that the file has left
    open.
    """
    config = ml_collections.ConfigDict(plain_dict(config, ""), convert_dict=True)
    for path, text in assignments.items():
        *parents, last = path.split(".")
        check(all((*parents, last)), f"--config.{path}", "must be keys with one dot between two")
        node = config
        for parent in parents:
            if parent not in node:
                _assign(node, parent, ml_collections.ConfigDict())
            elif not isinstance(node[parent], ml_collections.ConfigDict):
                # A shorthand (`objectives.align = 1.0`, `model = "align"`) opened by the override.
                short = node[parent]
                _assign(
                    node,
                    parent,
                    ml_collections.ConfigDict(
                        {"name": short} if isinstance(short, str) else {"weight": short}
                    ),
                )
            node = node[parent]
        _assign(node, last, literal(text))
    return config


def _assign(node: ml_collections.ConfigDict, key: str, value: Any) -> None:
    with node.ignore_type():
        node[key] = value


def literal(text: str) -> Leaf:
    """A Python literal, `true`, `false` or `none` in any case, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
    ):  # the last three: `{[]: 1}`, and nesting without end
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
