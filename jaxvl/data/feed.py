"""Global batches on the mesh, made ahead of the step."""

from __future__ import annotations

import collections
import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvl.data.ahead import Ahead
from jaxvl.data.batches import Batches, Pending, Rows, Start
from jaxvl.data.bottlenecks import STAGES, add
from jaxvl.data.config import SIGNAL, DataConfig
from jaxvl.data.gaps import Gaps, Span
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.reading.fill import Tally
from jaxvl.data.samplers.base import State
from jaxvl.data.sources.base import Source
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.sharding.hosts import Signal
from jaxvl.sharding.mesh import batch_sharding

MOST_AHEAD = 8  # batches
TAKEN_BACK = 8  # batches; a run notices within two steps that the rows of one were none


class Feed(Iterator):
    """Global batches on the mesh, made ahead of the step.

    Args:
      config: of the task.
      source: what `config.source` opens.
      tokenizer, preprocess: of the run.
      seed: of the task.
      start: where in the task's stream to begin; None: at its beginning.

    Attributes:
      position: records of the stream consumed so far; the data position of a checkpoint.
      steps: batches given so far.
      latest: positions of the last batch in the stream.
      gaps: parts of the stream that no batch has.
      waited: seconds that `next` has waited for a batch.
      failure: what a batch could not be made for, once `take` has met it.
      skipped_before: bad records by cause that all processes had counted by `start`.
      rows: B.
      records: of one epoch.
      shapes: name -> ShapeDtypeStruct of the global batch.
      source: whose records are read.
      name: where the records come from, for a message.
      left_out: cause -> files or members that are in no record; the same on every host.

    Raises:
      ConfigError: at a key below `data`, for what the source cannot serve.
    """

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        tokenizer: Tokenizer,
        *,
        seed: int,
        mesh: Mesh,
        start: Start | None = None,
        preprocess: Preprocess = Preprocess(),
    ):
        start = start or Start()
        self.config = config
        self.rows = config.batch
        self.waited = 0.0
        self.failure: Exception | None = None
        self._transferred = 0.0
        self._seconds_before = dict.fromkeys(STAGES, 0.0)
        self._sharding = batch_sharding(mesh)
        self._make_batches = functools.partial(
            Batches,
            config,
            tokenizer=tokenizer,
            seed=seed,
            preprocess=preprocess,
            rows=own_rows(self._sharding, config.batch),
        )
        self.shapes = config.shapes
        self._begin(start)
        self._open(source, start)
        self._signals = {
            signal: self._fill(fed_shapes(config)[SIGNAL], signal) for signal in Signal
        }
        self._nothing: dict[str, jax.Array] | None = None

    def _begin(self, start: Start) -> None:
        """Puts the counts of what was given to where the stream begins."""
        self.position = start.position
        self.steps = (
            start.position // self.config.records_per_batch if start.steps is None else start.steps
        )
        self.latest: tuple[Span, ...] = ()
        self.gaps = Gaps(start.gaps)
        self.skipped_before = dict(start.skipped)
        self._tally = Tally()
        self._last: collections.deque[Tally] = collections.deque(maxlen=TAKEN_BACK)

    def _open(self, source: Source, start: Start) -> None:
        """Begins to read."""
        used = self.config.select(source)
        self.source = used
        self.records = len(used)
        self.name = used.name
        self.left_out = dict(used.left_out())
        self._fingerprint = used.fingerprint
        self._batches = self._make_batches(used, start=start)
        self._ahead = Ahead(in_flight(self._batches, self._flying()), self._put)

    def reopen(self, source: Source) -> None:
        """Goes on at the same position of the stream with other columns of the same records, such
        as a table that was made anew. What was read ahead is dropped."""
        gaps = self.gaps.spans
        start = Start(self.position, self.steps, self.sampler_state, gaps=gaps)
        self._read_anew(source, start)

    def rewind(self, source: Source, start: Start) -> None:
        """Goes back, or on, to another place of the stream. What was read ahead is dropped."""
        self._read_anew(source, start)
        self._begin(start)

    def _read_anew(self, source: Source, start: Start) -> None:
        spent = self._batches.seconds()
        self._seconds_before = add([self._seconds_before, {**spent, "transfer": 0.0}])
        self.close()
        self._open(source, start)

    def numbers(self, spans: Sequence[Span]) -> np.ndarray:
        """int64 [n]: numbers of the records of `source` that stand at some positions. Bad ones
        among them were replaced by the next good ones."""
        positions = [np.arange(start, end) for start, end in spans]
        return self._batches.order(np.concatenate(positions))

    def _flying(self) -> int:
        """Batches whose records are read at a time, within `reader.prefetch_mb`."""
        rows = len(self._batches.rows.index)
        size = (
            sum(math.prod(shape.shape[1:]) * shape.dtype.itemsize for shape in self.shapes.values())
            * rows
        )
        return max(1, min(MOST_AHEAD, self.config.reader.prefetch_mb * 2**20 // max(size, 1)))

    def counts(self) -> tuple[int, dict[str, int]]:
        """Records of the batches given so far that this process counts, and the bad ones of these
        by cause."""
        return self._tally.seen, dict(self._tally.skipped)

    @property
    def workers(self) -> list[int]:
        """Process numbers of the workers that read; none where threads of this process do."""
        return self._batches.workers

    @property
    def identity(self) -> dict[str, int | str | None]:
        """What tells whether another feed reads the same records, JSON-able."""
        return {"records": self.records, "fingerprint": self._fingerprint}

    @property
    def sampler_state(self) -> State:
        """What the order of the records keeps in a checkpoint at `position`."""
        return self._batches.order.state(self.position)

    @property
    def skipped(self) -> dict[str, int]:
        """Cause -> bad records that this process has counted so far."""
        return self.counts()[1]

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Stage (`bottlenecks.STAGES`) -> seconds that all threads of this process together have
        spent in it."""
        return add(
            [self._seconds_before, {**self._batches.seconds(), "transfer": self._transferred}]
        )

    def _put(self, made: tuple[dict[str, np.ndarray], Tally]) -> tuple[dict[str, jax.Array], Tally]:
        batch, tally = made
        began = time.perf_counter()
        whole = {
            k: jax.make_array_from_process_local_data(self._sharding, v, self.shapes[k].shape)
            for k, v in batch.items()
        }
        self._transferred += time.perf_counter() - began
        return whole, tally

    def _fill(self, shape: jax.ShapeDtypeStruct, value: int) -> jax.Array:
        local = np.full((len(self._batches.rows.index), *shape.shape[1:]), value, shape.dtype)
        return jax.make_array_from_process_local_data(self._sharding, local, shape.shape)

    def __next__(self) -> dict[str, jax.Array]:
        """Raises what making the batch has raised."""
        began = time.perf_counter()
        batch, tally = self._ahead.get()
        self.waited += time.perf_counter() - began
        self._advance(tally)
        return batch

    def _advance(self, tally: Tally) -> None:
        records = self.config.records_per_batch
        self.latest = self.gaps.covered(self.position, records)
        self.position = self.gaps.forward(self.position, records)
        self.steps += 1
        self._tally.add(tally)
        self._last.append(tally)

    def take(self, *, call: bool = False) -> dict[str, jax.Array]:
        """The next batch with its `SIGNAL`, for a training loop.

        Where it cannot be made, its rows are zeros that the step does not learn from
        (`Signal.BROKEN`), and `failure` says why: in a run of several processes this one has to
        take part in the steps until all of them end together.

        Args:
          call: whether this process asks all of them to confer.
        """
        try:
            batch = next(self)
        except (
            Exception
        ) as error:  # whatever a reader raises, the other processes must not be left in a step
            self.failure = error
            batch = self._zeros()
            self._advance(Tally())
        signal = Signal.CALL if call else Signal.FINE
        if self.failure is not None:
            signal = Signal.BROKEN
        return batch | {SIGNAL: self._signals[signal]}

    def take_back(self) -> None:
        """Leaves the last batch out of `position`, `steps` and the counts: a step did not learn
        from it. Not for reading it again."""
        self.position = self.gaps.forward(self.position, -self.config.records_per_batch)
        self.steps -= 1
        self._tally.take_away(self._last.pop())

    def _zeros(self) -> dict[str, jax.Array]:
        if self._nothing is None:
            self._nothing = {name: self._fill(shape, 0) for name, shape in self.shapes.items()}
        return self._nothing

    def close(self) -> None:
        self._ahead.close()
        self._batches.close()


def fed_shapes(config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `Feed.take` gives."""
    return config.shapes | {SIGNAL: jax.ShapeDtypeStruct((config.batch,), np.uint8)}


def in_flight(batches: Batches, count: int) -> Iterator[tuple[dict[str, np.ndarray], Tally]]:
    """The batches in their order, and what reading them has met; the records of `count` of them are
    read at a time."""
    pending: collections.deque[Pending] = collections.deque()
    for i in itertools.count():
        pending.append(batches.begin(i))
        if len(pending) >= count:
            oldest = pending.popleft()
            yield oldest.result(), oldest.tally


def own_rows(sharding: jax.sharding.Sharding, batch: int) -> Rows:
    """The rows of a global batch that this process fills, each of them counted by one process."""
    owners = row_owners(sharding, batch)
    here = jax.process_index()
    mine = np.flatnonzero([here in processes for processes in owners])
    counted = np.array([min(owners[row]) == here for row in mine], bool)
    return Rows(mine, counted)


def row_owners(sharding: jax.sharding.Sharding, rows: int) -> list[set[int]]:
    """The processes that hold each row of a batch."""
    owners: list[set[int]] = [set() for _ in range(rows)]
    for device, (index,) in sharding.devices_indices_map((rows,)).items():
        for row in range(rows)[index]:
            owners[row].add(device.process_index)
    return owners
