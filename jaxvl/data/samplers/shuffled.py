"""A new permutation of all records every epoch, which reads from few shards at a time.

Shards are permuted, the epoch is cut into windows of `window` shards, and records are permuted
inside their window. All of it is in closed form. An epoch keeps 4 bytes a shard and 8 a window, and
nothing for a record.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import Annotated, TypeVar

import numpy as np

from jaxvl.config import Range, check
from jaxvl.data.draws import derive
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.samplers.permutation import keys, permute
from jaxvl.data.sources.base import Source

EPOCHS_KEPT = 2  # a batch may lie over the border of two epochs
WINDOWS_KEPT = 8  # threads that read ahead may be in other windows
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Window = Annotated[int, Range(1, 1_048_576)]


@SAMPLERS.register("shuffled")
@dataclasses.dataclass(frozen=True)
class Shuffled(SamplerConfig):
    """Every record once per epoch, in a new random order each.

    Attributes:
      window: shards whose records are mixed. A host reads from so many shards at a time. A source
        with fewer shards is mixed as a whole.
    """

    window: Window = 64

    def order(self, source: Source, seed: int, state: State | None = None) -> ShuffledOrder:
        """Raises ConfigError for a mixture with weights, which this order would not keep."""
        weighted = [part for part in source.parts if part.weight is not None]
        check(
            not weighted,
            "name",
            "'shuffled' reads all records equally often, but the source's parts have "
            "weights; must be 'mixture'",
        )
        return ShuffledOrder(source.shards(), seed, self.window)


@dataclasses.dataclass(frozen=True)
class _Window:
    """A window of an epoch: its records are `length` places, shard after shard.

    Attributes:
      key: uint64 [1], of the permutation of the places.
      length: int64 [1].
      begins: int64 [W], the place where each shard begins.
      shifts: int64 [W]; a place of a shard plus its shift is the record's number.
    """

    key: np.ndarray
    length: np.ndarray
    begins: np.ndarray
    shifts: np.ndarray

    def records(self, places: np.ndarray) -> np.ndarray:
        """Record numbers of places in the window."""
        mixed = permute(places, self.length, self.key)
        shard = self.begins.searchsorted(mixed, side="right") - 1
        return mixed + self.shifts[shard]


class ShuffledOrder(Order):
    """The two-level permutation of records in shards.

    Args:
      shards: int64 [K], records of each shard.
      window: shards in a window. Windows are made as even as possible.
      part: which of several such orders of one seed.
    """

    def __init__(self, shards: np.ndarray, seed: int, window: int, part: str = "0"):
        self._sizes = np.asarray(shards, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.epoch = int(self._sizes.sum())
        self._shard_key = derive(seed, "order", part, "shards")
        self._record_key = derive(seed, "order", part, "records")
        windows = max(1, -(-len(self._sizes) // window))
        self._bounds = (
            np.arange(windows + 1) * len(self._sizes) // windows
        )  # first shard slot of each window
        self._forget()

    def _forget(self) -> None:
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], _Window] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_layouts", "_windows", "_lock")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._forget()

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64)
        if not len(positions):
            return positions
        epochs, places = np.divmod(positions, self.epoch)
        if len(self._bounds) == 2:  # one window: all epochs at once, however short
            key = keys(self._record_key, epochs, np.zeros(1, np.int64))
            return permute(places, np.array([self.epoch]), key)
        return by_value(epochs, places, self._of_epoch)

    def after(self, record: int) -> int:
        """See `Order`."""
        return (record + 1) % self.epoch

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Records at places of one epoch."""
        _, firsts = self._layout(epoch)
        windows = firsts.searchsorted(places, side="right") - 1
        return by_value(
            windows,
            places,
            lambda window, some: self._window(epoch, window).records(some - firsts[window]),
        )

    def _window(self, epoch: int, window: int) -> _Window:
        kept = self._windows.get((epoch, window))
        if kept is not None:
            return kept
        permuted, firsts = self._layout(epoch)
        shards = permuted[self._bounds[window] : self._bounds[window + 1]]
        begins = np.cumsum(self._sizes[shards]) - self._sizes[shards]
        made = _Window(
            key=keys(self._record_key, np.array([epoch]), np.array([window])),
            length=np.array([firsts[window + 1] - firsts[window]]),
            begins=begins,
            shifts=self._starts[shards] - begins,
        )
        with self._lock:
            self._windows = kept_with(self._windows, (epoch, window), made, WINDOWS_KEPT)
        return made

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an epoch: shard number of every slot, int32 [K], and the first place of every window
        and the end, int64."""
        kept = self._layouts.get(epoch)
        if kept is not None:
            return kept
        slots = np.arange(len(self._sizes))
        key = keys(self._shard_key, np.array([epoch]))
        permuted = permute(slots, np.array([len(slots)]), key).astype(np.int32)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes[permuted])])
        layout = permuted, ends[self._bounds]
        with self._lock:
            self._layouts = kept_with(self._layouts, epoch, layout, EPOCHS_KEPT)
        return layout


def by_value(
    values: np.ndarray, rows: np.ndarray, work: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """`work(value, rows that have it)` for each value, put together again. Batches mostly have one
    value."""
    first = values[0]
    if (values == first).all():
        return work(int(first), rows)
    out = np.empty_like(rows)
    for value in np.unique(values).tolist():
        mine = values == value
        out[mine] = work(value, rows[mine])
    return out


def kept_with(kept: dict[K, V], key: K, value: V, most: int) -> dict[K, V]:
    """A copy of `kept` with one more entry and without the oldest ones; readers need no lock."""
    out = {**kept, key: value}
    while len(out) > most:
        out.pop(next(iter(out)))
    return out
