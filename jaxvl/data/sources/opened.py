"""The opened sources of this process: each config is opened once, for tasks and evaluators alike."""

from __future__ import annotations

import pathlib
from typing import Any

from jaxvl import paths
from jaxvl.data.folders import cache_folder
from jaxvl.data.sources.base import Log, SourceConfig

_OPENED: dict[tuple[paths.Path | pathlib.Path, SourceConfig], Any] = {}  # (cache folder, config) -> source


def opened(config: SourceConfig, log: Log = print) -> Any:
    """The source of a config; the first call opens it."""
    key = (cache_folder(), config)
    if key not in _OPENED:
        _OPENED[key] = config.open(log=log)
    return _OPENED[key]


def forget() -> None:
    """Drops the sources of an earlier run in this process: a run that begins opens its own anew."""
    _OPENED.clear()
