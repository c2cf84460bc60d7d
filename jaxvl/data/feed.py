"""Global batches on the mesh, made ahead of the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from jaxvl.config import check
from jaxvl.data.ahead import Ahead
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.sharding.hosts import Signal
from jaxvl.sharding.mesh import batch_sharding

SIGNAL = "signal"  # entry of a batch that is trained with, uint8 [B]: what each row's process says with it (`hosts.Signal`)


class Feed(Iterator):
    """Global batches on the mesh, made ahead of the step.

    Args:
      start: position in the task's stream to begin at.
      steps: batches that the task had before; None: as many as `start` makes of the present size.

    Attributes:
      position: records of the stream consumed so far; the data position of a checkpoint.
      steps: batches given so far.
      waited: seconds that `next` has waited for a batch.
      failure: what a batch could not be made for, once `take` has met it.
      rows: B.
      records: of one epoch.
      shapes: name -> ShapeDtypeStruct of the global batch.
      path: where the records come from, for a message.
    """

    def __init__(
        self, config: DataConfig, corpus: Any, tokenizer: Tokenizer, *, seed: int, mesh: Mesh, start: int = 0, steps: int | None = None,
        preprocess: Preprocess = Preprocess(),
    ):  # fmt: skip
        check(
            config.split in corpus.splits,
            "data.split",
            f"{config.split!r} is not a split of the corpus (splits: {', '.join(corpus.splits)})",
        )
        self.config = config
        self.rows = config.batch
        self.waited = 0.0
        self.position = start
        self.steps = start // config.records_per_batch if steps is None else steps
        self.failure: Exception | None = None
        self._sharding = batch_sharding(mesh)
        owners = row_owners(self._sharding, config.batch)
        here = jax.process_index()
        mine = np.flatnonzero([here in processes for processes in owners])
        counted = np.array([min(owners[row]) == here for row in mine])
        values = (config.classes(corpus) or (None,))[0]
        source = config.open(corpus)
        self.records = len(source)
        self._fingerprint = getattr(corpus, "fingerprint", None)  # a corpus of a plugin may have none
        self._batches = Batches(
            config, source, tokenizer, seed=seed, rows=mine, values=values, start=start, counted=counted, preprocess=preprocess
        )
        self.path = self._batches.path
        self.shapes = config.shapes
        self._signals = {signal: self._fill(fed_shapes(config)[SIGNAL], signal) for signal in Signal}
        self._nothing: dict[str, jax.Array] | None = None
        stream = grain.MapDataset.range(2**40).map(self._make)
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        self._ahead = Ahead(iter(stream.to_iter_dataset(options)), self._put)

    def counts(self) -> tuple[int, dict[str, int]]:
        """Records that this process has counted so far, and the bad ones of these by cause (of the batches made ahead as well)."""
        return self._batches.counts()

    @property
    def identity(self) -> dict[str, int | str | None]:
        """What tells whether another feed reads the same records, JSON-able."""
        return {"records": self.records, "fingerprint": self._fingerprint}

    @property
    def skipped(self) -> dict[str, int]:
        """Cause -> bad records counted so far."""
        return self.counts()[1]

    def _make(self, i: int) -> dict[str, np.ndarray] | Exception:
        """Rows of a batch, or what making it has raised: Grain would add lines of its own to it."""
        try:
            return self._batches[i]
        except Exception as error:
            return error

    def _put(self, batch: dict[str, np.ndarray] | Exception) -> dict[str, jax.Array]:
        if isinstance(batch, Exception):
            raise batch
        return {k: jax.make_array_from_process_local_data(self._sharding, v, self.shapes[k].shape) for k, v in batch.items()}

    def _fill(self, shape: jax.ShapeDtypeStruct, value: int) -> jax.Array:
        local = np.full((len(self._batches.rows), *shape.shape[1:]), value, shape.dtype)
        return jax.make_array_from_process_local_data(self._sharding, local, shape.shape)

    def __next__(self) -> dict[str, jax.Array]:
        """Raises what making the batch has raised."""
        began = time.perf_counter()
        batch = self._ahead.get()
        self.waited += time.perf_counter() - began
        self.position += self.config.records_per_batch
        self.steps += 1
        return batch

    def take(self, *, call: bool = False) -> dict[str, jax.Array]:
        """The next batch with its `SIGNAL`, for a training loop.

        Where it cannot be made, its rows are zeros that the step does not learn from (`Signal.BROKEN`), and `failure` says why: in a run of
        several processes this one has to take part in the steps until all of them end together.

        Args:
          call: whether this process asks all of them to confer.
        """
        try:
            batch = next(self)
        except Exception as error:  # whatever a reader raises, the other processes must not be left in a step
            self.failure = error
            batch = self._zeros()
            self.position += self.config.records_per_batch
            self.steps += 1
        signal = Signal.CALL if call else Signal.FINE
        if self.failure is not None:
            signal = Signal.BROKEN
        return batch | {SIGNAL: self._signals[signal]}

    def take_back(self) -> None:
        """Leaves the last batch out of `position` and `steps`: a step did not learn from it. Not for reading it again."""
        self.position -= self.config.records_per_batch
        self.steps -= 1

    def _zeros(self) -> dict[str, jax.Array]:
        if self._nothing is None:
            self._nothing = {name: self._fill(shape, 0) for name, shape in self.shapes.items()}
        return self._nothing

    def close(self) -> None:
        self._ahead.close()


def fed_shapes(config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `Feed.take` gives."""
    return config.shapes | {SIGNAL: jax.ShapeDtypeStruct((config.batch,), np.uint8)}


def row_owners(sharding: jax.sharding.Sharding, rows: int) -> list[set[int]]:
    """The processes that hold each row of a batch."""
    owners: list[set[int]] = [set() for _ in range(rows)]
    for device, (index,) in sharding.devices_indices_map((rows,)).items():
        for row in range(rows)[index]:
            owners[row].add(device.process_index)
    return owners
