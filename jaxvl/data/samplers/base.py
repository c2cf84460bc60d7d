"""What every sampler is: record numbers as a pure function of the position in a stream."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import numpy as np

from jaxvl.aliases import Json
from jaxvl.data.sources.base import Source

State = Mapping[str, Json]  # JSON-able: numbers, texts, lists and dicts


class Order(abc.ABC):
    """The record at each position of an endless stream.

    Equal configs, seeds, states and sources (by their shards, length and columns) give equal
    orders. A position has its record whatever other positions are asked for, so any host can read
    any part of the stream. It is thread-safe and picklable.

    Attributes:
      epoch: positions in which every record of the order comes once; None where records come at
        different rates.
      group: consecutive positions that are one row of a batch, an anchor and its negatives; the
        first of a row is a multiple of it.
    """

    epoch: int | None
    group: int = 1

    @abc.abstractmethod
    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: record numbers of positions int64 [n], each in 0 … 2^62 - 1."""

    @abc.abstractmethod
    def after(self, record: int) -> int:
        """The record that takes the place of `record` where that cannot be read: the next one of
        its part or cluster.

        So a row stays of the part or cluster that it was dealt to. Whoever goes on from one to the
        next meets all of them.
        """

    def consumed(self, position: int) -> tuple[int, ...]:
        """Rows of each part of the source among the first `position` ones. A source of one part has
        one number."""
        return (position,)

    def state(self, position: int) -> State:
        """What a checkpoint at `position` keeps, small and JSON-able, for `SamplerConfig.order`.

        An order that is made with it, under equal options, is this order at every position. Under
        other options it goes on from `position` with what each part had then.
        """
        return {}


class SamplerConfig:
    """Base of samplers. One is a registered frozen dataclass."""

    def order(self, source: Source, seed: int, state: State | None = None) -> Order:
        """The order of a source's records.

        Args:
          state: of a checkpoint (`Order.state`); None or empty: the stream begins.

        Raises:
          ConfigError: at one of its own fields, where the source does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} must order records")

    def for_batch(self, rows: int) -> SamplerConfig:
        """The config for batches of `rows` records; itself where it does not depend on them."""
        del rows
        return self
