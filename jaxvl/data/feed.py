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
from jaxvl.sharding.mesh import batch_sharding


class Feed(Iterator):
    """Global batches on the mesh, made ahead of the step.

    Attributes:
      position: index of the next batch; the data position of a checkpoint.
      waited: seconds that `next` has waited for a batch.
      skipped: cause -> bad records met so far (by the batches made ahead as well).
      rows: B.
      records: of one epoch.
      shapes: name -> ShapeDtypeStruct of the global batch.
    """

    def __init__(
        self, config: DataConfig, corpus: Any, tokenizer: Tokenizer, *, seed: int, mesh: Mesh, start: int = 0,
        preprocess: Preprocess = Preprocess(),
    ):  # fmt: skip
        check(
            config.split in corpus.splits,
            "data.split",
            f"{config.split!r} is not a split of the corpus (splits: {', '.join(corpus.splits)})",
        )
        self.rows, self.position, self.waited = config.batch, start, 0.0
        self._sharding = batch_sharding(mesh)
        shape = (config.batch,)
        mine = np.zeros(config.batch, bool)
        for index in self._sharding.addressable_devices_indices_map(shape).values():
            mine[index] = True
        values = (config.classes(corpus) or (None,))[0]
        source = config.open(corpus)
        self.records = len(source)
        self._batches = Batches(config, source, tokenizer, seed=seed, rows=np.flatnonzero(mine), values=values, preprocess=preprocess)
        self.shapes = config.shapes
        stream = grain.MapDataset.range(start, 2**40).map(self._batches.__getitem__)
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        self._ahead = Ahead(iter(stream.to_iter_dataset(options)), self._put)

    @property
    def identity(self) -> dict[str, int]:
        """What tells whether another feed reads the same records, JSON-able."""
        return {"records": self.records}

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self._batches.skipped)

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {k: jax.make_array_from_process_local_data(self._sharding, v, self.shapes[k].shape) for k, v in batch.items()}

    def __next__(self) -> dict[str, jax.Array]:
        """Raises DataError once the error budget is exceeded."""
        began = time.perf_counter()
        batch = self._ahead.get()
        self.waited += time.perf_counter() - began
        self.position += 1
        return batch

    def close(self) -> None:
        self._ahead.close()
