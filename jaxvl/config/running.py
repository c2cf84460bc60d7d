"""Running a file of the user's own: a config or a plugin."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import TypeVar

from jaxvl.config.errors import ConfigError, describe_exception

Result = TypeVar("Result")


def run_file(source: bytes | str, file: str, name: str, key: str) -> types.ModuleType:
    """The module `name` that a file's text makes. It is in `sys.modules`, where dataclasses look
    for it.

    Raises:
      ConfigError: at `key`; it is no Python, or fails.
    """
    module = types.ModuleType(name)
    module.__file__ = file
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        calling(
            lambda: exec(compile(source, file, "exec", dont_inherit=True), vars(module)), file, key
        )
    except ConfigError:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def calling(function: Callable[[], Result], file: str, key: str) -> Result:
    """`function()`; whatever it raises becomes a ConfigError with the line of `file`."""
    try:
        return function()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(key, f"{file}, {describe_exception(error, file)}") from error
