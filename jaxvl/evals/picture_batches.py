"""Pictures of a source in batches for the devices: read and decoded ahead, bad ones marked."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxvl.data import pictures
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Record
from jaxvl.evals.ranking import put
from jaxvl.evals.result import EvaluatorError

# Why a record is skipped. Processes tell each other which by its position, 1 being the first; 0 is
# a good record.
CAUSES = ("record cannot be read", "record is incomplete", *pictures.CAUSES)
# places in `CAUSES`
_UNREAD = 0
_INCOMPLETE = 1
_UNDECODED = 2
FAILED = len(CAUSES) + 1  # an error that is no bad record: it ends the evaluator, in every process
_PADDING = -1


class Pictures(Protocol):
    """Records with a column of encoded pictures: a `base.Source`, or less than that."""

    def __len__(self) -> int: ...

    def read(self, i: int, columns: Collection[str] | None = None) -> Record: ...


class PictureBatches:
    """Makes batches of pictures.

    Args:
      preprocess: that the model was trained with.
      sharding: of the batch dimension over the mesh.
      batch: rows B.
      threads: for reading and decoding.

    Attributes:
      errors: record of the present call -> what this process met at it.
    """

    def __init__(self, preprocess: Preprocess, sharding: NamedSharding, batch: int, threads: int):
        self.preprocess = preprocess
        self.sharding = sharding
        self.batch = batch
        self.threads = threads
        self.errors: dict[int, Exception] = {}

    def of(
        self, source: Pictures | np.ndarray, column: str, extra: Sequence[np.ndarray]
    ) -> Iterator[tuple[jax.Array, ...]]:
        """(pixels uint8 [B, S, S, C], fault int32 [B], rows of `extra` …) of consecutive records,
        each process filling in its own rows."""
        mine = np.zeros(self.batch, bool)
        for index in self.sharding.addressable_devices_indices_map((self.batch,)).values():
            mine[index] = True
        mine = np.flatnonzero(mine)
        with ThreadPoolExecutor(self.threads) as pool:
            ahead: collections.deque = collections.deque()
            for start in range(0, len(source), self.batch):
                more = [
                    put(padded(a[start : start + self.batch], self.batch), self.sharding)
                    for a in extra
                ]
                ahead.append(
                    ([pool.submit(self._row, source, column, start + i) for i in mine], more)
                )
                if len(ahead) > 1:
                    yield self._assemble(mine, *ahead.popleft())
            while ahead:
                yield self._assemble(mine, *ahead.popleft())

    def _assemble(
        self, mine: np.ndarray, futures: list, more: list[jax.Array]
    ) -> tuple[jax.Array, ...]:
        size = self.preprocess.image_size
        pixels = np.zeros((self.batch, size, size, 4), np.uint8)
        fault = np.full(self.batch, _PADDING, np.int32)
        for i, future in zip(mine, futures):
            picture, fault[i] = future.result()
            if picture is not None:
                pixels[i, ..., : picture.shape[-1]] = picture
                if picture.shape[-1] == 3:
                    pixels[i, ..., 3] = 255
        return put(pixels, self.sharding), put(fault, self.sharding), *more

    def _row(
        self, source: Pictures | np.ndarray, column: str, i: int
    ) -> tuple[np.ndarray | None, int]:
        """Pixels and fault of record `i`."""
        if i >= len(source):
            return None, _PADDING
        if isinstance(source, np.ndarray):
            return source[i], 0
        default = _UNREAD
        try:
            data = source.read(int(i), (column,)).get(column)
            if data is None:
                return None, 1 + _INCOMPLETE
            default = _UNDECODED
            return self.preprocess.decode(data), 0
        except BadRecord as error:
            return None, 1 + (CAUSES.index(error.cause) if error.cause in CAUSES else default)
        except Exception as error:  # noqa: BLE001 (raised by whoever collects, where all processes have learnt of it)
            self.errors[i] = error
            return None, FAILED

    def failure(self, i: int) -> EvaluatorError:
        """What to raise of record `i`, at which some process met an error that is no bad record."""
        error = self.errors.get(i)
        if error is None:
            return EvaluatorError(f"record {i}: another process met an error at it and names it")
        failure = EvaluatorError(
            f"record {i}: {type(error).__name__}: {error} (a source raises BadRecord for a "
            f"record that may be skipped)"
        )
        failure.__cause__ = error
        return failure


def padded(rows: np.ndarray, n: int) -> np.ndarray:
    """`rows` with zeros after them, `n` in all."""
    return (
        np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])
        if len(rows) < n
        else rows
    )
