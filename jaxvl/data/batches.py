"""From records to batches; `feed.py` puts them on the mesh.

A task reads a stream of records. Which record stands at a position of it, which caption it shows
and where its picture is cut are pure functions of (seed, position). So the position of a run is one
integer, the number of records that it has consumed. It means the same with any batch size and on
any number of hosts: each reads its own rows of the global batch.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import ConfigError
from jaxvl.data import budget
from jaxvl.data.config import DataConfig
from jaxvl.data.draws import Uniforms
from jaxvl.data.gaps import Gaps, Span
from jaxvl.data.packing import pack
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.reading.fill import Part, Recipe, Tally
from jaxvl.data.reading.pool import Pool, Threads
from jaxvl.data.reading.processes import Processes
from jaxvl.data.records import DataError, causes
from jaxvl.data.samplers.base import State
from jaxvl.data.samplers.default import default_sampler
from jaxvl.data.sources.base import Source
from jaxvl.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a task's stream begins.

    Attributes:
      position: records of it that were consumed before.
      steps: batches that the task had before; None: as many as `position` makes of the present
        size.
      sampler: what its order kept (`samplers.base.Order.state`).
      skipped: bad records by cause, of all hosts, among those that were consumed before.
    """

    position: int = 0
    steps: int | None = None
    sampler: State | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gaps: tuple[Span, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of the global batch that this host fills.

    Attributes:
      index: int [b], their places in it.
      counted: bool [b], which of them this host counts; one that several hosts read is counted by
        one of them.
    """

    index: np.ndarray
    counted: np.ndarray

    @classmethod
    def every(cls, batch: int) -> Rows:
        """All rows: those of a single host."""
        return cls(np.arange(batch), np.ones(batch, bool))


class Batches:
    """Random access to the batches of a source, as this host's rows: numpy, nothing of jax. Batch
    `i` has the records `[P + i B K, P + (i + 1) B K)` of the stream, which begins at P. Where the
    stream has gaps, records are counted without these.

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
        self._gaps = Gaps(start.gaps)
        self._first = self._gaps.count(start.position)
        try:
            sampler = config.sampler or default_sampler(source)
            sampler = sampler.for_batch(config.records_per_batch)
            self.order = sampler.order(source, seed, start.sampler)
        except ConfigError as error:
            raise error.under("sampler") from None
        self._special = (tokenizer.eos_id, tokenizer.pad_id)
        # Each has numbers of its own, so that what a row draws for one stays as it is whatever else
        # is added.
        self._draws = {
            name: Uniforms(seed, "row", name, n=field.draws)
            for name, field in config.fields.items()
            if field.draws
        }
        recipe = Recipe(config, source, self.order, tokenizer, preprocess, self.rows.counted)
        self._pool: Pool = Processes(recipe) if config.reader.processes else Threads(recipe)
        self._lock = threading.Lock()
        self._tally = Tally()

    def __getitem__(self, i: int) -> HostArrays:
        """Rows of batch `i`, as `DataConfig.shapes` says, of this host. Interleaved rows hold K
        consecutive records of the stream each.

        Raises DataError where `REPLACEMENTS` records in a row are bad.
        """
        return self.begin(i).result()

    def begin(self, i: int) -> Pending:
        """Batch `i`, on its way: its records are read together with those of other batches."""
        config = self.config
        k = config.records_per_row
        places = (self.rows.index[:, None] * k + np.arange(k)).reshape(-1)
        positions = self._gaps.place(self._first + i * config.records_per_batch + places)
        draws = {name: uniforms(positions) for name, uniforms in self._draws.items()}
        return Pending(
            self,
            *self._pool.begin(
                Part(np.arange(len(places)), positions, self.order(positions), draws)
            ),
        )

    def finish(self, out: HostArrays) -> HostArrays:
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
            return self._tally.seen, dict(self._tally.skipped)

    def count(self, tally: Tally) -> None:
        """Adds what reading a batch has met."""
        with self._lock:
            self._tally.add(tally)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds that all threads together have spent in it, of all processes that read,
        for the batches that were made so far."""
        with self._lock:
            return dict(self._tally.seconds)

    @property
    def workers(self) -> list[int]:
        """Process numbers of the workers; none where threads of this process read."""
        return self._pool.pids

    def check_budget(self) -> None:
        """Raises DataError where too many of the records that this host counted are bad. For
        whoever reads on one host; a run of several sums up the counts of all of them."""
        seen, skipped = self.counts()
        check_budget(
            self.config, self.source.name, seen, sum(skipped.values()), f" ({causes(skipped)})"
        )

    def close(self) -> None:
        """Ends the threads and processes that read; nothing can be read afterwards."""
        self._pool.close()


class Pending:
    """A batch whose records are being read.

    Attributes:
      tally: what reading them has met, once `result` has returned.
    """

    def __init__(self, batches: Batches, out: HostArrays, jobs: Sequence[Future[Tally]]):
        self.tally = Tally()
        self._batches = batches
        self._out = out
        self._jobs = jobs

    def result(self) -> HostArrays:
        """The batch, once all its records are there; asked for once. Raises what reading one of
        them has raised."""
        for job in self._jobs:
            self.tally.add(job.result())
        self._batches.count(self.tally)
        return self._batches.finish(self._out)


def check_budget(config: DataConfig, name: str, seen: int, bad: int, detail: str) -> None:
    """Raises DataError where too many records are bad.

    Args:
      name: where the records come from.
      seen: records, bad ones included.
      detail: more about the bad ones, for the message.
    """
    if budget.exceeded(bad, seen, config.error_budget, config.error_minimum):
        raise DataError(
            f"{name}: {bad} of {seen} records are bad{detail}, more than error_budget "
            f"{config.error_budget:g} allows"
        )
