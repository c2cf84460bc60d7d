"""Batches of records that are alike, by a table of clusters."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxvl.config import Batch, check
from jaxvl.data.draws import derive
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.samplers.permutation import below, keys, permute
from jaxvl.data.samplers.tables import Table
from jaxvl.data.sources.base import Source


@SAMPLERS.register("per_cluster")
@dataclasses.dataclass(frozen=True)
class PerCluster(SamplerConfig):
    """Every batch is of one cluster, and every record comes once per epoch.

    A cluster whose size is no multiple of the batch leaves some records over, others in every
    epoch.

    Attributes:
      table: cluster of every record: a `.npy` file of integers [n], or a column. Records of a
        negative cluster are left out.
      batch: rows of a batch; None: the data's.
      leftover: what the records that are left over do. `mixed`: they make mixed batches of
        neighbouring clusters; those that do not fill the last of them are left out of the epoch:
        fewer than one batch. `dropped`: they are left out of the epoch, so that no batch ever
        mixes clusters (MCL); a cluster that is smaller than a batch never comes.
    """

    table: str
    batch: Batch | None = None
    leftover: Literal["mixed", "dropped"] = "mixed"

    def for_batch(self, rows: int) -> SamplerConfig:
        return self if self.batch is not None else dataclasses.replace(self, batch=rows)

    def order(self, source: Source, seed: int, state: State | None = None) -> ClusterOrder:
        """See `SamplerConfig`."""
        check(self.batch is not None, "batch", "None must be the rows of a batch")
        clusters = Table(source, self.table, axes=1).values
        used = int((clusters >= 0).sum())
        check(
            used >= self.batch,
            "batch",
            f"{self.batch!r} must be at most {used:,}, the records that have a cluster",
        )
        dropped = self.leftover == "dropped"
        if dropped:
            largest = int(np.bincount(clusters[clusters >= 0]).max())
            check(
                largest >= self.batch,
                "batch",
                f"{self.batch!r} must be at most {largest:,}, the records of the largest cluster",
            )
        return ClusterOrder(clusters, seed, self.batch, state, dropped)


class ClusterOrder(Order):
    """Batches of one cluster each. It keeps 8 bytes a record.

    Args:
      clusters: int [n]; negative: of none.
      batch: rows of a batch, B.
      state: of a checkpoint. With another B the epochs begin anew.
      dropped: whether what is left over is left out.
    """

    def __init__(
        self,
        clusters: np.ndarray,
        seed: int,
        batch: int,
        state: State | None = None,
        dropped: bool = False,
    ):
        self._batch = batch
        self._since = 0
        if state:
            self._since = state["began"] if state["batch"] == batch else state["now"]
        order = np.argsort(clusters, kind="stable")
        self._records = order[np.searchsorted(clusters, 0, sorter=order) :]
        _, self._firsts, self._sizes = np.unique(
            clusters[self._records], return_index=True, return_counts=True
        )
        self._whole = (
            self._sizes // batch * batch
        )  # records of each cluster that make batches of their own
        left = self._sizes - self._whole
        self._first_batches = np.concatenate([[0], np.cumsum(self._whole // batch)])
        self._first_left = np.concatenate([[0], np.cumsum(left)])
        self._left = max(1, int(left.sum()))
        whole = int(self._first_batches[-1])
        self._batches = whole if dropped else len(self._records) // batch
        self.epoch = self._batches * batch
        names = ("batches", "records", "left")
        self._keys = {name: derive(seed, "clusters", name, self._since) for name in names}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64) - self._since
        if len(positions) and positions.min() < 0:
            raise ValueError(f"positions: this order begins at position {self._since}")
        epochs, places = np.divmod(positions, self.epoch)
        batches, rows = np.divmod(places, self._batch)
        batches = permute(batches, np.array([self._batches]), keys(self._keys["batches"], epochs))
        cluster, rank = self._of_whole(batches, rows)
        further = batches - self._first_batches[-1]
        mixed = further >= 0
        if mixed.any():
            cluster[mixed], rank[mixed] = self._of_left(further[mixed], rows[mixed], epochs[mixed])
        shuffled = permute(rank, self._sizes[cluster], keys(self._keys["records"], epochs, cluster))
        return self._records[self._firsts[cluster] + shuffled]

    def after(self, record: int) -> int:
        """See `Order`: the next of its cluster."""
        place = int(np.flatnonzero(self._records == record)[0])
        cluster = np.searchsorted(self._firsts, place, side="right") - 1
        first = int(self._firsts[cluster])
        return int(self._records[first + (place + 1 - first) % int(self._sizes[cluster])])

    def _of_whole(self, batches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cluster, and place in it, of rows of batches that are of one cluster; 0 and 0 for the
        others."""
        whole = batches < self._first_batches[-1]
        batches = np.where(whole, batches, 0)
        cluster = np.searchsorted(self._first_batches, batches, side="right") - 1
        rank = (batches - self._first_batches[cluster]) * self._batch + rows
        return np.where(whole, cluster, 0), np.where(whole, rank, 0)

    def _of_left(
        self, batches: np.ndarray, rows: np.ndarray, epochs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cluster, and place in it, of rows of mixed batches. Those of an epoch begin at a random
        one of what is left."""
        first = below(keys(self._keys["left"], epochs), np.array([self._left]))
        place = (batches * self._batch + rows + first) % self._left
        cluster = np.searchsorted(self._first_left, place, side="right") - 1
        return cluster, self._whole[cluster] + place - self._first_left[cluster]

    def state(self, position: int) -> State:
        """See `Order`."""
        return {"batch": self._batch, "began": self._since, "now": position}
