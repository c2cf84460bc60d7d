"""The prepared corpora of this process: each corpus config is prepared once, for tasks and evaluators alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jaxvl.data.corpora.store import cache_folder

_PREPARED: dict[Any, Any] = {}  # (cache folder, corpus config) -> corpus


def prepared(config: Any, log: Callable[[str], None] = print) -> Any:
    """The corpus of a config; the first call prepares it."""
    key = (cache_folder(), config)
    if key not in _PREPARED:
        _PREPARED[key] = config.prepare(log=log)
    return _PREPARED[key]


def prepare_all(configs: Iterable[Any], log: Callable[[str], None] = print) -> dict[Any, Any]:
    """Corpus config -> prepared corpus of a run that begins. Corpora of an earlier run in this process are dropped and read anew."""
    _PREPARED.clear()
    return {config: prepared(config, log) for config in configs}
