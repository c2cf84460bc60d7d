"""The order of the source itself, again and again."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.base import Order, SamplerConfig, State
from jaxvl.data.sources.base import Source


@SAMPLERS.register("in_order")
@dataclasses.dataclass(frozen=True)
class InOrder(SamplerConfig):
    """Records 0, 1, 2 …; every epoch is the same."""

    def order(self, source: Source, seed: int, state: State | None = None) -> InOrderOrder:
        """See `SamplerConfig`."""
        return InOrderOrder(len(source))


class InOrderOrder(Order):
    """Record `position % n`."""

    def __init__(self, n: int):
        self.epoch = n

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(positions, np.int64) % self.epoch

    def after(self, record: int) -> int:
        """See `Order`."""
        return (record + 1) % self.epoch
