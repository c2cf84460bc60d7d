"""Each record with hard negatives of its own, by a table."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import Count, check
from jaxvl.data.draws import derive
from jaxvl.data.records import DataError
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.samplers.permutation import below, keys, permute
from jaxvl.data.samplers.shuffled import ShuffledOrder, Window
from jaxvl.data.samplers.tables import Table
from jaxvl.data.sources.base import Source


@SAMPLERS.register("with_negatives")
@dataclasses.dataclass(frozen=True)
class WithNegatives(SamplerConfig):
    """Groups of 1 + N records: an anchor, in the order of `shuffled`, and its negatives.

    Attributes:
      table: record numbers of every record's negatives: a `.npy` file of integers [n, M], or a
        column. -1 stands for none; a record drawn at random takes its place.
      negatives: negatives of an anchor, N. With fewer than M they are drawn each time, without
        replacement. None: M.
      window: see `shuffled`.
    """

    table: str
    negatives: Count | None = None
    window: Window = 64

    def order(self, source: Source, seed: int, state: State | None = None) -> NegativesOrder:
        """See `SamplerConfig`."""
        table = Table(source, self.table, axes=2)
        width = table.values.shape[1]
        check(
            width > 0,
            "table",
            f"{self.table!r} has the shape {list(table.values.shape)}; must have a negative "
            f"for each record",
        )
        wanted = width if self.negatives is None else self.negatives
        check(
            wanted <= width,
            "negatives",
            f"{wanted!r} must be at most {width}, the width of {self.table!r}",
        )
        anchors = ShuffledOrder(source.shards(), seed, self.window)
        return NegativesOrder(anchors, table, self.table, wanted, seed)


class NegativesOrder(Order):
    """Position `p` is member `p % (1 + N)` of group `p // (1 + N)`; member 0 is the anchor.

    Args:
      anchors: order of the anchors.
      table: negatives [n, M].
      name: of the table, for messages.
      negatives: N.
    """

    def __init__(self, anchors: Order, table: Table, name: str, negatives: int, seed: int):
        self.group = 1 + negatives
        self.epoch = anchors.epoch * self.group
        self._anchors = anchors
        self._table = table
        self._name = name
        self._draw_key = derive(seed, "negatives", "draw")
        self._random_key = derive(seed, "negatives", "random")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Raises DataError for a negative that is no record."""
        positions = np.asarray(positions, np.int64)
        groups, members = np.divmod(positions, self.group)
        anchors = self._anchors(groups)
        out = anchors.copy()
        rows = np.flatnonzero(members > 0)
        if len(rows):
            out[rows] = self._negatives(
                anchors[rows], groups[rows], members[rows] - 1, positions[rows]
            )
        return out

    def after(self, record: int) -> int:
        """See `Order`."""
        return self._anchors.after(record)

    def _negatives(
        self, anchors: np.ndarray, groups: np.ndarray, places: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        n, width = self._table.values.shape
        if self.group - 1 < width:
            places = permute(places, np.array([width]), keys(self._draw_key, groups))
        found = np.asarray(self._table.values[anchors, places], np.int64)
        if found.max() >= n:
            worst = int(found.argmax())
            raise DataError(
                f"{self._name}: row {anchors[worst]} names record {found[worst]}, but there "
                f"are {n:,}"
            )
        random = below(keys(self._random_key, positions), np.array([n]))
        return np.where(found < 0, random, found)
