"""A few records of each class."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import Count, check
from jaxvl.data.draws import derive
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.samplers.permutation import keys
from jaxvl.data.samplers.shuffled import ShuffledOrder
from jaxvl.data.samplers.tables import Table
from jaxvl.data.sources.base import Source


@SAMPLERS.register("few_shot")
@dataclasses.dataclass(frozen=True)
class FewShot(SamplerConfig):
    """The same k records of each class in every epoch, shuffled.

    The records of k are among those of k + 1, for one seed.

    Attributes:
      k: records of a class.
      column: the class column, or a `.npy` file of classes. Records that lack it, or have a
        negative class, are left out.
      allow_fewer: take all records of a class that has fewer than k; False: refuse it.
    """

    k: Count
    column: str = "class_label"
    allow_fewer: bool = False

    def order(self, source: Source, seed: int, state: State | None = None) -> ChosenOrder:
        """See `SamplerConfig`."""
        classes = Table(source, self.column, axes=1, key="column").values
        usable = classes >= 0
        present = source.present(self.column) if self.column in source.columns else None
        if present is not None:
            usable &= present
        records = np.flatnonzero(usable)
        check(len(records) > 0, "column", f"{self.column!r}: no record has a class")
        chosen, counts = self._choose(records, np.asarray(classes[records], np.int64), seed)
        fewer = int((counts < self.k).sum())
        problem = (
            f"{self.k} records are not there for {fewer} of {len(counts)} classes (the fewest: "
            f"{counts.min()})"
        )
        check(
            self.allow_fewer or not fewer,
            "k",
            f"{problem}; must be at most {counts.min()}, or allow_fewer=True",
        )
        return ChosenOrder(chosen, seed)

    def _choose(
        self, records: np.ndarray, classes: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The records with the k smallest random numbers of each class, sorted; and the number of
        records of each class."""
        random = keys(derive(seed, "few_shot"), records)
        sorting = np.lexsort((random, classes))
        _, firsts, counts = np.unique(classes[sorting], return_index=True, return_counts=True)
        rank = np.arange(len(records)) - np.repeat(firsts, counts)
        return np.sort(records[sorting[rank < self.k]]), counts


class ChosenOrder(Order):
    """Some records, each once per epoch.

    Attributes:
      chosen: int64 [m], the records.
    """

    def __init__(self, chosen: np.ndarray, seed: int):
        self.chosen = chosen
        self.epoch = len(chosen)
        self._places = ShuffledOrder(np.array([len(chosen)]), seed, window=1)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return self.chosen[self._places(positions)]

    def after(self, record: int) -> int:
        """See `Order`: the next of the chosen ones, of whatever class."""
        place = np.searchsorted(self.chosen, record, "right")
        return int(self.chosen[place % len(self.chosen)])
