"""What fills batches, and the threads of this process that do it."""

from __future__ import annotations

import abc
from concurrent.futures import Future, ThreadPoolExecutor

from jaxvl.aliases import HostArrays
from jaxvl.data.reading.fill import Filler, Layout, Part, Recipe, Tally

PER_THREAD = 4  # jobs of one batch for each thread, so that a slow record holds up few others


class Pool(abc.ABC):
    """Fills the arrays of batches, several at a time. It is thread-safe.

    Attributes:
      pids: process numbers of its workers, if it has any.
    """

    def __init__(self):
        self.pids: list[int] = []

    @abc.abstractmethod
    def begin(self, part: Part) -> tuple[HostArrays, list[Future[Tally]]]:
        """The arrays of a batch, and the jobs that fill all of its rows with `part`: each does what
        `Filler.fill` does."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all that reads; nothing can be begun afterwards."""


class Threads(Pool):
    """Threads of this process."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        reader = recipe.config.reader
        self.filler = Filler(recipe, reader.cache_mb * 2**20)
        self._layout: Layout = recipe.layout
        self._pieces = PER_THREAD * reader.threads
        self._threads = ThreadPoolExecutor(reader.threads, thread_name_prefix="jaxvl-read")

    def begin(self, part: Part) -> tuple[HostArrays, list[Future[Tally]]]:
        """See `Pool`."""
        out = self._layout.new()
        return out, [
            self._threads.submit(self.filler.fill, out, piece) for piece in part.cut(self._pieces)
        ]

    def close(self) -> None:
        """See `Pool`. Waits for what is being read."""
        self._threads.shutdown(wait=True, cancel_futures=True)
