"""Rows of several parts by weight, for a source that is made of parts (`sources/mixture.py`).

Shares are exact, in every stretch of the stream. Each part goes through its own epochs in its own
order, so other weights, or other parts, change nothing in it: a resume with them goes on where each
part was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxvl.config import Batch, check
from jaxvl.data.draws import derive
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.samplers.permutation import below, keys
from jaxvl.data.samplers.shares import Shares
from jaxvl.data.samplers.shuffled import ShuffledOrder, Window
from jaxvl.data.sources.base import Part, Source

Stream = Callable[
    [np.ndarray], np.ndarray
]  # places of a part's own stream, int64 [n], to record numbers of the source


@SAMPLERS.register("mixture")
@dataclasses.dataclass(frozen=True)
class Mixture(SamplerConfig):
    """Rows of each part by its weight.

    Attributes:
      weight_by: of what a part's weight is a factor.
        share    its rows: weight / sum of weights is its share of the rows.
        records  its records: the share of rows goes as weight x records. This is what open_clip's
                 --train-data-upsampling-factors come to. There a factor weighs every shard that is
                 drawn, and a shard that is drawn gives all its records.
        shards   its shards: the share of rows goes as weight x number of shards. It equals
                 `records` where all shards hold equally many records.
        Parts without weights get rows by their number of records.
      resampled: draw records with replacement, as open_clip's --dataset-resampled does with shards;
        there are no epochs then. False: every record of a part comes once per epoch of the part.
      homogeneous: every batch is of one part. Shares are those of batches.
      batch: rows of a batch, for `homogeneous`; None: the data's.
      window: see `shuffled`.
    """

    weight_by: Literal["share", "records", "shards"] = "share"
    resampled: bool = False
    homogeneous: bool = False
    batch: Batch | None = None
    window: Window = 64

    def for_batch(self, rows: int) -> SamplerConfig:
        return self if self.batch is not None else dataclasses.replace(self, batch=rows)

    def order(self, source: Source, seed: int, state: State | None = None) -> MixtureOrder:
        """See `SamplerConfig`."""
        parts = parts_of(source)
        streams = [part_stream(part, seed, self.window, self.resampled) for part in parts]
        weights = [weight_of(part, self.weight_by) for part in parts]
        equally = all(part.weight is None for part in parts)
        epoch = len(source) if equally and not self.resampled and not self.homogeneous else None
        return MixtureOrder(
            parts,
            streams,
            weights,
            batch=dealt_rows(self.homogeneous, self.batch),
            state=state,
            epoch=epoch,
        )


def parts_of(source: Source) -> Sequence[Part]:
    """Raises ConfigError where the source has no parts."""
    check(
        bool(source.parts),
        "name",
        f"needs a source of parts, which {source.name} is not; must be a sampler such as "
        f"'shuffled'",
    )
    return source.parts


def dealt_rows(homogeneous: bool, batch: int | None) -> int:
    """Rows that go to one part together. Raises ConfigError."""
    if not homogeneous:
        return 1
    check(batch is not None, "batch", "None must be the rows of a batch with homogeneous=True")
    return batch


def weight_of(part: Part, weight_by: str) -> float:
    """What the rows of a part go by."""
    if part.weight is None:
        return len(part)
    factor = {"share": 1, "records": len(part), "shards": len(part.shards)}[weight_by]
    return part.weight * factor


@dataclasses.dataclass(frozen=True)
class OrderedPart:
    """A stream of one part, by an order of the part's own records."""

    order: Order
    start: int

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return self.start + self.order(places)


@dataclasses.dataclass(frozen=True)
class ResampledPart:
    """A stream of records of one part, drawn with replacement."""

    key: int
    start: int
    n: int

    def __call__(self, places: np.ndarray) -> np.ndarray:
        return self.start + below(keys(self.key, places), np.array([self.n]))


def part_stream(part: Part, seed: int, window: int, resampled: bool = False) -> Stream:
    """The stream of one part, by an order of its own or with replacement."""
    if resampled:
        return ResampledPart(derive(seed, "resampled", part.name), part.start, len(part))
    return OrderedPart(ShuffledOrder(part.shards, seed, window, part.name), part.start)


class MixtureOrder(Order):
    """Several streams, dealt by weight.

    Its state names the weights, the position where they began to hold, and what each part had
    consumed by then.

    Args:
      parts: of the source.
      streams, weights: of each part.
      batch: rows that are dealt together.
      state: of a checkpoint.
      epoch: see `Order`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        streams: Sequence[Stream],
        weights: Sequence[float],
        *,
        batch: int = 1,
        state: State | None = None,
        epoch: int | None = None,
    ):
        names = [part.name for part in parts]
        self.epoch = epoch
        self._spans = [range(part.start, part.end) for part in parts]
        self._streams = list(streams)
        self._names = names
        self._shares = Shares(weights)
        self._batch = batch
        self._dealt = {"names": names, "weights": list(weights), "batch": batch}
        self._since = 0
        self._consumed = dict.fromkeys(names, 0)
        if state:
            began = state["began"] if state["dealt"] == self._dealt else state["now"]
            self._since = began["position"]
            self._consumed |= began["consumed"]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64) - self._since
        if len(positions) and positions.min() < 0:
            raise ValueError(f"positions: this order begins at position {self._since}")
        batches, places = np.divmod(positions, self._batch)
        dealt, of_part = self._shares(batches)
        of_part = of_part * self._batch + places
        out = np.empty_like(positions)
        for part in np.unique(dealt).tolist():
            mine = dealt == part
            out[mine] = self._streams[part](self._consumed[self._names[part]] + of_part[mine])
        return out

    def after(self, record: int) -> int:
        """See `Order`."""
        span = next(span for span in self._spans if record in span)
        return span.start + (record + 1 - span.start) % len(span)

    def consumed(self, position: int) -> tuple[int, ...]:
        """Raises ValueError for a position before this order began."""
        return tuple(self._all_consumed(position)[name] for name in self._names)

    def _all_consumed(self, position: int) -> Mapping[str, int]:
        """Also of parts that this source no longer has, so that they can come back."""
        if position < self._since:
            raise ValueError(f"position: {position} is before this order began, at {self._since}")
        batches, places = divmod(position - self._since, self._batch)
        begun = self._shares.counts(batches)
        after = self._shares.counts(batches + 1)
        counts = dict(self._consumed)
        for name, whole, further in zip(self._names, begun, after):
            counts[name] += whole * self._batch + (further - whole) * places
        return counts

    def state(self, position: int) -> State:
        """See `Order`."""
        began = {"position": self._since, "consumed": dict(self._consumed)}
        now = {"position": position, "consumed": dict(self._all_consumed(position))}
        return {"dealt": self._dealt, "began": began, "now": now}
