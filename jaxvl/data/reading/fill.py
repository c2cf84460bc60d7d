"""From a record's number to its rows in the arrays of a batch: what each thread does that reads."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import ConfigError
from jaxvl.data.cache import Cache
from jaxvl.data.config import POSITION, DataConfig
from jaxvl.data.fields.base import Context, Reader
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord, DataError, causes
from jaxvl.data.samplers.base import Order
from jaxvl.data.sources.base import Record, Source
from jaxvl.data.tokenizers import Tokenizer

REPLACEMENTS = 100  # bad records in a row for one row of a batch
STAGES = ("read", "decode", "transform")  # of `stages.STAGES`, those of this file

Values = Mapping[Any, Any]  # a reader's key -> what it took from a record


class Part(NamedTuple):
    """Rows of a batch, and what they are filled with.

    Attributes:
      rows: int [n], their places in the batch's arrays.
      positions: int64 [n], of the stream.
      numbers: int64 [n], of the records that stand there.
      draws: field -> float64 [n, m], its uniform numbers.
    """

    rows: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    draws: Mapping[str, np.ndarray]

    def some(self, chosen: slice | np.ndarray) -> Part:
        """A part of it."""
        draws = {name: values[chosen] for name, values in self.draws.items()}
        return Part(self.rows[chosen], self.positions[chosen], self.numbers[chosen], draws)

    def cut(self, pieces: int) -> list[Part]:
        """At most so many parts of equal size; the last may be smaller."""
        size = -(-len(self.rows) // pieces)
        return (
            [self.some(slice(first, first + size)) for first in range(0, len(self.rows), size)]
            if size
            else []
        )


@dataclasses.dataclass
class Tally:
    """What reading some records has met.

    Attributes:
      seen: records that this host counts, bad ones included.
      skipped: cause -> bad ones of these.
      seconds: stage -> seconds spent in it.
    """

    seen: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(STAGES, 0.0)
    )

    def add(self, other: Tally) -> None:
        """Adds what another one has."""
        self.seen += other.seen
        self.skipped.update(other.skipped)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds

    def take_away(self, other: Tally) -> None:
        """Takes away the records that another one has counted; the time spent on them stays."""
        self.seen -= other.seen
        self.skipped -= other.skipped


class Layout:
    """The arrays of a batch as records give them, before interleaved rows are packed.

    Args:
      config: of the task.
      count: records of a batch that this host reads.
      pad_id: what texts are padded with.
    """

    def __init__(self, config: DataConfig, count: int, pad_id: int):
        self._shapes = {
            name: ((count, *row.shape), np.dtype(row.dtype))
            for name, row in config.record_shapes.items()
        }
        self._pads = {
            name: pad_id for name, modality in config.inputs.items() if modality == "text"
        }
        self._places: dict[str, int] = {}
        self.nbytes = 0
        for name, (shape, dtype) in self._shapes.items():
            self._places[name] = self.nbytes
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self.nbytes += (
                -(-size // 64) * 64
            )  # jax on a CPU takes arrays over without copying where they begin at multiples of 64

    def new(self) -> HostArrays:
        """HostArrays whose rows have nothing."""
        out = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._shapes.items()}
        for name, pad_id in self._pads.items():
            out[name][:] = pad_id
        return out

    def within(self, memory: ctypes.Array) -> HostArrays:
        """HostArrays in memory of `nbytes` bytes, as it stands. They keep `memory` alive."""
        return {
            name: np.frombuffer(
                memory, dtype, int(np.prod(shape, dtype=np.int64)), self._places[name]
            ).reshape(shape)
            for name, (shape, dtype) in self._shapes.items()
        }

    def clear(self, out: HostArrays, rows: np.ndarray) -> None:
        """Makes rows int [n] have nothing: zeros, and texts of padding."""
        for name, array in out.items():
            array[rows] = self._pads.get(name, 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that filling rows needs. It can be pickled.

    Attributes:
      config: of the task.
      source: its records.
      order: of them.
      tokenizer, preprocess: of the run.
      counted: bool [b], which rows of a batch this host counts.
    """

    config: DataConfig
    source: Source
    order: Order
    tokenizer: Tokenizer
    preprocess: Preprocess
    counted: np.ndarray

    @property
    def layout(self) -> Layout:
        """Of the batches."""
        return Layout(
            self.config, len(self.counted) * self.config.records_per_row, self.tokenizer.pad_id
        )


class Filler:
    """Fills rows of batches. It is thread-safe.

    Args:
      cache_bytes: what it may keep in memory.

    Raises:
      ConfigError: at `fields.NAME`, for a field that the source cannot serve.
    """

    def __init__(self, recipe: Recipe, cache_bytes: int):
        config = recipe.config
        self.source = recipe.source
        self._order = recipe.order
        self.cache = Cache(cache_bytes)
        self._counted = recipe.counted
        self._records_per_row = config.records_per_row
        self._readers = _readers(
            config, recipe.source, Context(recipe.tokenizer, recipe.preprocess, self.cache)
        )
        self._columns = tuple(
            dict.fromkeys(column for reader in self._readers.values() for column in reader.columns)
        )
        self._required = config.required
        self._optional = [name for name in config.fields if name not in self._required]
        masked = config.missing == "mask"
        self._masks = {
            name: [f"has_{entry}" for entry in field.inputs(name)] if masked else []
            for name, field in config.fields.items()
        }

    def fill(self, out: HostArrays, part: Part) -> Tally:
        """Fills rows that have nothing; returns what it has met.

        Raises:
          DataError: `REPLACEMENTS` records in a row are bad.
          Exception: whatever else the source raises.
        """
        tally = Tally()
        draws = {name: values.tolist() for name, values in part.draws.items()}
        out[POSITION][part.rows] = part.positions % 2**31
        for at, (row, number) in enumerate(zip(part.rows.tolist(), part.numbers.tolist())):
            values, skipped = self._values(number, tally.seconds)
            if self._counted[row // self._records_per_row]:
                tally.seen += 1 + len(skipped)
                tally.skipped.update(skipped)
            began = time.perf_counter()
            for name, reader in self._readers.items():
                value = values.get(reader.key)
                if value is None:
                    continue
                reader.write(out, row, value, draws[name][at] if name in draws else ())
                for mask in self._masks[name]:
                    out[mask][row] = True
            tally.seconds["transform"] += time.perf_counter() - began
        return tally

    def _values(self, number: int, spent: dict[str, float]) -> tuple[Values, list[str]]:
        """What the readers take from a record, or from the next good one of its part or cluster,
        and why those before it are bad."""
        skipped: list[str] = []
        while len(skipped) < REPLACEMENTS:
            try:
                return self._load(number, spent), skipped
            except BadRecord as error:
                skipped.append(error.cause)
                number = self._order.after(number)
        raise DataError(
            f"{self.source.name}: {REPLACEMENTS} bad records in a row "
            f"({causes(collections.Counter(skipped))})"
        )

    def _load(self, number: int, spent: dict[str, float]) -> Values:
        kept = self.cache.get(number)
        if kept is not None:
            return kept
        began = time.perf_counter()
        record = self.source.read(number, self._columns)
        read = time.perf_counter()
        values = self._decoded(record)
        spent["read"] += read - began
        spent["decode"] += time.perf_counter() - read
        self.cache.put(number, values)
        return values

    def _decoded(self, record: Record) -> Values:
        values: dict[Any, Any] = {}
        for reader in self._readers.values():
            if reader.key not in values:
                values[reader.key] = reader.load(record)
        absent = [name for name, reader in self._readers.items() if values[reader.key] is None]
        for name in absent:
            if name in self._required:
                raise BadRecord(f"no {name}", f"a record of {self.source.name} has none")
        if absent and all(name in absent for name in self._optional):
            raise BadRecord(
                f"no {absent[0]}", f"a record of {self.source.name} has none of {', '.join(absent)}"
            )
        return {key: value for key, value in values.items() if value is not None}


def _readers(config: DataConfig, source: Source, context: Context) -> dict[str, Reader]:
    found = {}
    for name, field in config.fields.items():
        try:
            found[name] = field.reader(name, source, context)
        except ConfigError as error:
            raise error.under(f"fields.{name}") from None
    return found
