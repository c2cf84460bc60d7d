"""From records to batches; `feed.py` puts them on the mesh.

A task reads a stream of records. Which record stands at a position of it, which caption it shows and where its picture is cut are pure
functions of (seed, position). So the position of a run is one integer, the number of records that it has consumed. It means the same
with any batch size and on any number of hosts: each reads its own rows of the global batch.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxvl.config import ConfigError
from jaxvl.data import budget
from jaxvl.data.cache import Cache
from jaxvl.data.config import POSITION, DataConfig
from jaxvl.data.draws import Uniforms
from jaxvl.data.fields.base import Context, Reader
from jaxvl.data.packing import pack
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord, DataError, causes
from jaxvl.data.samplers.base import State, for_batch
from jaxvl.data.samplers.default import default_sampler
from jaxvl.data.sources.base import Record, Source
from jaxvl.data.tokenizers import Tokenizer

REPLACEMENTS = 100  # bad records in a row for one row of a batch
PER_THREAD = 4  # jobs of one batch for each thread, so that a slow record holds up few others
STAGES = ("read", "decode", "transform")  # of `stages.STAGES`, those of this file

Arrays = dict[str, np.ndarray]
Values = Mapping[Any, Any]  # a reader's key -> what it took from a record


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a task's stream begins.

    Attributes:
      position: records of it that were consumed before.
      steps: batches that the task had before; None: as many as `position` makes of the present size.
      sampler: what its order kept (`samplers.base.Order.state`).
      skipped: bad records by cause, of all hosts, among those that were consumed before.
    """

    position: int = 0
    steps: int | None = None
    sampler: State | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Counts:
    """Records that were read for rows which this host counts.

    Attributes:
      seen: all of them.
      skipped: the bad ones of these by cause.
    """

    seen: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Counts) -> None:
        self.seen += other.seen
        self.skipped.update(other.skipped)

    def take_away(self, other: Counts) -> None:
        self.seen -= other.seen
        self.skipped -= other.skipped


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of the global batch that this host fills.

    Attributes:
      index: int [b], their places in it.
      counted: bool [b], which of them this host counts; one that several hosts read is counted by one of them.
    """

    index: np.ndarray
    counted: np.ndarray

    @classmethod
    def every(cls, batch: int) -> Rows:
        """All rows: those of a single host."""
        return cls(np.arange(batch), np.ones(batch, bool))


class Batches:
    """Random access to the batches of a source, as this host's rows: numpy, nothing of jax. Batch `i` has the records
    `[P + i B K, P + (i + 1) B K)` of the stream, which begins at P.

    Args:
      config: of the task.
      source: its records, as `DataConfig.select` gives them.
      tokenizer, preprocess: of the run.
      seed: of the task.
      rows: of this host; None: all.
      start: where the stream begins; None: at its beginning.

    Raises:
      ConfigError: at `fields.NAME`, for a field that the source cannot serve.
      DataError: the source is empty.
    """

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        tokenizer: Tokenizer,
        *,
        seed: int,
        preprocess: Preprocess = Preprocess(),
        rows: Rows | None = None,
        start: Start | None = None,
    ):
        if len(source) == 0:
            raise DataError(f"{source.name} has no records")
        self.config = config
        self.rows = rows or Rows.every(config.batch)
        self.source = source
        start = start or Start()
        self._first = start.position
        try:
            sampler = for_batch(config.sampler or default_sampler(source), config.records_per_batch)
            self.order = sampler.order(source, seed, start.sampler)
        except ConfigError as error:
            raise error.under("sampler") from None
        self._cache = Cache(config.reader.cache_mb * 2**20)
        self._readers = _readers(config, source, Context(tokenizer, preprocess, self._cache))
        self._columns = tuple(dict.fromkeys(column for reader in self._readers.values() for column in reader.columns))
        self._special = (tokenizer.eos_id, tokenizer.pad_id)
        self._required = config.required
        self._optional = [name for name in config.fields if name not in self._required]
        self._shapes = config.record_shapes
        self._texts = [name for name, modality in config.inputs.items() if modality == "text"]
        masked = config.missing == "mask"
        self._masks = {name: [f"has_{entry}" for entry in field.inputs(name)] if masked else [] for name, field in config.fields.items()}
        # Each has numbers of its own, so that what a row draws for one stays as it is whatever else is added.
        self._draws = {name: Uniforms(seed, "row", name, n=field.draws) for name, field in config.fields.items() if field.draws}
        self._pool = ThreadPoolExecutor(config.reader.threads, thread_name_prefix="jaxvl-read")
        self._lock = threading.Lock()
        self._counts = Counts()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def __getitem__(self, i: int) -> Arrays:
        """Rows of batch `i`, as `DataConfig.shapes` says, of this host. Interleaved rows hold K consecutive records of the stream each.

        Raises DataError where `REPLACEMENTS` records in a row are bad.
        """
        return self.begin(i).result()

    def begin(self, i: int) -> Pending:
        """Batch `i`, on its way: its records are read by the threads, together with those of other batches."""
        config = self.config
        k = config.records_per_row
        places = (self.rows.index[:, None] * k + np.arange(k)).reshape(-1)
        positions = self._first + i * config.records_per_batch + places
        out = self._nothing(len(places))
        out[POSITION][:] = positions % 2**31
        numbers = self.order(positions).tolist()
        draws = {name: uniforms(positions) for name, uniforms in self._draws.items()}
        size = -(-len(places) // (PER_THREAD * config.reader.threads))
        jobs = []
        for first in range(0, len(places), size):
            part = range(first, min(first + size, len(places)))
            drawn = {name: values[part.start : part.stop].tolist() for name, values in draws.items()}
            jobs.append(self._pool.submit(self._fill, out, part, numbers[part.start : part.stop], drawn))
        return Pending(self, out, jobs)

    def _nothing(self, count: int) -> Arrays:
        """So many rows that have nothing: zeros, and texts of padding."""
        out = {name: np.zeros((count, *row.shape), row.dtype) for name, row in self._shapes.items()}
        _, pad_id = self._special
        for name in self._texts:
            out[name][:] = pad_id
        return out

    def finish(self, out: Arrays) -> Arrays:
        """A batch all of whose records are there: interleaved rows are packed."""
        k = self.config.records_per_row
        if k == 1:
            return out
        out = {name: a.reshape(-1, k, *a.shape[1:]) for name, a in out.items()}
        eos_id, pad_id = self._special
        return out | pack(out["text"], self.config.tokens, eos_id=eos_id, pad_id=pad_id)

    def counts(self) -> tuple[int, dict[str, int]]:
        """Records of the batches that were made so far, and the bad ones of these by cause."""
        with self._lock:
            return self._counts.seen, dict(self._counts.skipped)

    def count(self, counts: Counts) -> None:
        """Adds those of a batch that was made."""
        with self._lock:
            self._counts.add(counts)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds that all threads together have spent in it."""
        with self._lock:
            return dict(self._seconds)

    def check_budget(self) -> None:
        """Raises DataError where too many of the records that this host counted are bad. For whoever reads on one host; a run of several
        sums up the counts of all of them."""
        seen, skipped = self.counts()
        check_budget(self.config, self.source.name, seen, sum(skipped.values()), f" ({causes(skipped)})")

    def close(self) -> None:
        """Ends the threads; nothing can be read afterwards."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, out: Arrays, rows: range, numbers: list[int], draws: Mapping[str, list[list[float]]]) -> Counts:
        """Fills some rows of a batch's arrays: with the records `numbers`, and the draws of each field."""
        spent = dict.fromkeys(STAGES, 0.0)
        counts = Counts()
        elsewhere = Counts()  # of rows that another host counts
        for at, (row, number) in enumerate(zip(rows, numbers)):
            counted = self.rows.counted[row // self.config.records_per_row]
            values = self._values(number, counts if counted else elsewhere, spent)
            began = time.perf_counter()
            for name, reader in self._readers.items():
                value = values.get(reader.key)
                if value is None:
                    continue
                reader.write(out, row, value, draws[name][at] if name in draws else ())
                for mask in self._masks[name]:
                    out[mask][row] = True
            spent["transform"] += time.perf_counter() - began
        with self._lock:
            for stage, seconds in spent.items():
                self._seconds[stage] += seconds
        return counts

    def _values(self, number: int, met: Counts, spent: dict[str, float]) -> Values:
        """What the readers take from a record, or from the next good one after it; `met` counts them."""
        for _ in range(REPLACEMENTS):
            met.seen += 1
            try:
                return self._load(number, spent)
            except BadRecord as error:
                met.skipped[error.cause] += 1
                number = (number + 1) % len(self.source)
        raise DataError(f"{self.source.name}: {REPLACEMENTS} bad records in a row ({causes(met.skipped)})")

    def _load(self, number: int, spent: dict[str, float]) -> Values:
        kept = self._cache.get(number)
        if kept is not None:
            return kept
        began = time.perf_counter()
        record = self.source.read(number, self._columns)
        read = time.perf_counter()
        values = self._decoded(record)
        spent["read"] += read - began
        spent["decode"] += time.perf_counter() - read
        self._cache.put(number, values)
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
            raise BadRecord(f"no {absent[0]}", f"a record of {self.source.name} has none of {', '.join(absent)}")
        return {key: value for key, value in values.items() if value is not None}


class Pending:
    """A batch whose records are being read.

    Attributes:
      counts: of its records, once `result` has returned.
    """

    def __init__(self, batches: Batches, out: Arrays, jobs: list[Future[Counts]]):
        self.counts = Counts()
        self._batches = batches
        self._out = out
        self._jobs = jobs

    def result(self) -> Arrays:
        """The batch, once all its records are there; asked for once. Raises what reading one of them has raised."""
        for job in self._jobs:
            self.counts.add(job.result())
        self._batches.count(self.counts)
        return self._batches.finish(self._out)


def _readers(config: DataConfig, source: Source, context: Context) -> dict[str, Reader]:
    found = {}
    for name, field in config.fields.items():
        try:
            found[name] = field.reader(name, source, context)
        except ConfigError as error:
            raise error.under(f"fields.{name}") from None
    return found


def check_budget(config: DataConfig, name: str, seen: int, bad: int, detail: str) -> None:
    """Raises DataError where too many records are bad.

    Args:
      name: where the records come from.
      seen: records, bad ones included.
      detail: more about the bad ones, for the message.
    """
    if budget.exceeded(bad, seen, config.error_budget, config.error_minimum):
        raise DataError(f"{name}: {bad} of {seen} records are bad{detail}, more than error_budget {config.error_budget:g} allows")
