"""What a config file needs for a team's own data: `data=/data/cc12m`, `val=/data/coco`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxvl.aliases import Leaf, Node
from jaxvl.config import ConfigError, choose
from jaxvl.data.inspecting.recognise import recognise
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log, Source


class Pairs(NamedTuple):
    """A source of images with texts, as a config has it, and its column of texts."""

    source: dict[str, Any]
    text: str


def open_source(what: str | os.PathLike[str] | Node, log: Log = print) -> Source:
    """The records of a file, a folder or a pattern of files, whatever their format; or of a
    source's config, `{"name": …}`.

    Raises:
      ConfigError: there is nothing, no source reads it, or the config is wrong.
      DataError: what is there cannot be read.
    """
    node = what if isinstance(what, Mapping) else recognise(os.fspath(what))
    return choose(SOURCES, node, "source").open(log)


def own_pairs(path: str, argument: str, demo: Node) -> Pairs:
    """The source that reads a path, or the demo's where none is given.

    Args:
      path: a file, a folder, a pattern of files; empty: none.
      argument: of the config file, for messages.
      demo: config of a recipe, whose texts are English names.

    Raises:
      ConfigError: at `argument`: there is nothing, or no source reads it.
    """
    if not path:
        return Pairs(dict(demo), "name/en")
    try:
        return Pairs(recognise(path), "text")
    except ConfigError as error:
        raise ConfigError(f"--config=…:{argument}", error.problem) from None


def own_evals(val: str, benchmarks: str, every: int) -> dict[str, dict[str, Leaf]]:
    """Evaluators of a team's own data.

    Args:
      val: path of images with texts, among which is searched; empty: none.
      benchmarks: folder of standard benchmarks; empty: none.
      every: steps between two evaluations.

    Raises:
      ConfigError: at `val`, as `own_pairs`.
    """
    evals: dict[str, dict[str, Leaf]] = {}
    if val:
        source, text = own_pairs(val, "val", {})
        evals["val"] = dict(name="retrieval", source=source, text=text, every=every)
    if benchmarks:
        evals["benchmarks"] = dict(name="benchmarks", root=benchmarks, every=every)
    return evals
