"""New data with a share of rows from data that was learned before, against forgetting."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from jaxvl.config import Batch, Range, check, nearest
from jaxvl.data.draws import derive
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import SamplerConfig, State
from jaxvl.data.samplers.mixture import (
    MixtureOrder,
    Stream,
    dealt_rows,
    part_stream,
    parts_of,
    weight_of,
)
from jaxvl.data.samplers.permutation import keys, permute
from jaxvl.data.samplers.shuffled import Window
from jaxvl.data.sources.base import Part, Source


@SAMPLERS.register("replay")
@dataclasses.dataclass(frozen=True)
class Replay(SamplerConfig):
    """Rows of some parts of a mixture are replayed; the other parts are the new data.

    The new parts share their rows by weight, and so do the replayed ones.

    Attributes:
      parts: names of the parts that are replayed.
      share: of all rows, for the replayed parts together.
      buffer: records that are kept of each replayed part: a random choice by seed. None: all.
      homogeneous, batch: see `mixture`.
      window: see `shuffled`.
    """

    parts: tuple[str, ...]
    share: Annotated[float, Range(0.0, 1.0, above=True, below=True)]
    buffer: Annotated[int, Range(1, 2**31 - 1)] | None = None
    homogeneous: bool = False
    batch: Batch | None = None
    window: Window = 64

    def __post_init__(self):
        check(bool(self.parts), "parts", "must name the parts that are replayed")

    def order(self, source: Source, seed: int, state: State | None = None) -> MixtureOrder:
        """See `SamplerConfig`."""
        parts = parts_of(source)
        names = [part.name for part in parts]
        for name in self.parts:
            check(
                name in names,
                "parts",
                f"{name!r} is not a part{nearest(name, names)} (parts: {', '.join(names)})",
            )
        check(
            not set(names) <= set(self.parts),
            "parts",
            f"{list(self.parts)} are all parts; at least one must be new",
        )
        weights = np.array([weight_of(part, "share") for part in parts], np.float64)
        replayed = np.array([name in self.parts for name in names])
        for side, share in ((replayed, self.share), (~replayed, 1 - self.share)):
            total = weights[side].sum()
            check(
                total > 0,
                "parts",
                f"the weights of {[n for n, s in zip(names, side) if s]} must not all be 0",
            )
            weights[side] *= share / total
        streams = [self._stream(part, seed) for part in parts]
        return MixtureOrder(
            parts,
            streams,
            weights.tolist(),
            batch=dealt_rows(self.homogeneous, self.batch),
            state=state,
        )

    def _stream(self, part: Part, seed: int) -> Stream:
        if part.name not in self.parts or self.buffer is None or self.buffer >= len(part):
            return part_stream(part, seed, self.window)
        return BufferedPart(derive(seed, "replay", part.name), part.start, len(part), self.buffer)


@dataclasses.dataclass(frozen=True)
class BufferedPart:
    """A stream of `buffer` records of one part, chosen at random; each comes once per epoch of the
    buffer."""

    key: int
    start: int
    n: int
    buffer: int

    def __call__(self, places: np.ndarray) -> np.ndarray:
        epochs, slots = np.divmod(places, self.buffer)
        shuffled = permute(slots, np.array([self.buffer]), keys(self.key, epochs))
        choice = keys(self.key ^ 1)
        return self.start + permute(shuffled, np.array([self.n]), choice)
