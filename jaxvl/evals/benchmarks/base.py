"""What a benchmark is, and what a layout finds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxvl.data.classes import ClassSet
from jaxvl.data.sources.base import Source

Task = Literal["classification", "multilabel", "retrieval", "pairs", "candidates"]
# Task -> its name in CLIP_benchmark's results.
TASK_NAMES: Mapping[Task, str] = {
    "classification": "zeroshot_classification",
    "multilabel": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "pairs": "image_caption_selection",
    "candidates": "candidate_selection",
}
# Task -> the figure that stands for a set, where the set has no other.
MAIN_METRIC: Mapping[Task, str] = {
    "classification": "acc1",
    "multilabel": "mean_average_precision",
    "retrieval": "mean_recall@1",
    "pairs": "acc",
    "candidates": "acc1",
}


class Side(NamedTuple):
    """A query or a candidate: a text, a picture by its record number, or both."""

    text: str | None = None
    image: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Queries that each choose among candidates of their own.

    Attributes:
      sides: the distinct queries and candidates.
      queries: int [n], places in `sides`.
      candidates: n arrays int [k], places in `sides`.
      right: n arrays bool [k].
    """

    sides: tuple[Side, ...]
    queries: np.ndarray
    candidates: tuple[np.ndarray, ...]
    right: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """One set of a benchmark in one language.

    Attributes:
      name: as CLIP_benchmark names it, where it does.
      task: what is asked:
        classification  which class an image is of; column `label`
        multilabel      which classes are in it; column `labels`, 0/1 [C]
        retrieval       which captions belong to it and back; column `captions`
        pairs           images and texts that belong together; column `captions`, and `group` where
                        an instance has several records
        candidates      see `candidates`
      source: one record for each picture.
      columns: `image`, `label`, `labels`, `captions`, `group`, `metadata` -> the source's column.
      main_metric: the figure that stands for the set.
      classes: names and templates; empty templates: the default ones.
      language: of the texts.
      figures: what else is measured, by name: see `scoring.EXTRA_FIGURES`.
      candidates: of that task.
      pictures: equal where two benchmarks have the same pictures in the same order.
      no_label: why a record may have no label.
      notes: what a reader of the figure should know.
    """

    name: str
    task: Task
    source: Source
    columns: Mapping[str, str]
    main_metric: str
    classes: ClassSet | None = None
    language: str = "en"
    figures: str | None = None
    candidates: Candidates | None = None
    pictures: str | None = None
    no_label: str = "no label"
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A benchmark that was recognised and not yet opened.

    Attributes:
      name, language: of the benchmark.
      layout: in words.
      folder: where it lies.
      open: gives the benchmark. Raises DataError where what is there cannot be used.
    """

    name: str
    layout: str
    folder: pathlib.Path
    open: Callable[[], Benchmark]
    language: str = "en"

    @property
    def key(self) -> str:
        """Unique among the sets of a command; the name of its results file without the suffix."""
        name = self.name.replace("/", "_")
        return name if self.language == "en" else f"{name}_{self.language}"
