"""What a reader process does: it fills rows of batches in shared memory; see `processes.py`."""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import cloudpickle

from jaxvl.aliases import HostArrays
from jaxvl.config.plugins import load_again
from jaxvl.data.reading.fill import Filler, Layout, Recipe
from jaxvl.data.reading.memory import shared
from jaxvl.data.reading.processes import Begin, Job, Reply

LOOK = 2.0  # seconds between two looks at whether the parent lives


class Memory:
    """The arrays of the batches.

    Args:
      file: descriptor of the slots.
      size: bytes of a slot.
      layout: of a batch.
    """

    def __init__(self, file: int, size: int, layout: Layout):
        self._file = file
        self._size = size
        self._layout = layout
        self._slots: dict[int, HostArrays] = {}
        self._lock = threading.Lock()

    def __getitem__(self, slot: int) -> HostArrays:
        with self._lock:
            if slot not in self._slots:
                memory = mmap.mmap(self._file, self._size, offset=slot * self._size)
                self._slots[slot] = self._layout.within(memory)
            return self._slots[slot]


class Work:
    """The jobs of this process.

    Args:
      connection: to the parent.
      slots, shared_file: descriptors of the batches' memory, and of the recipe's.
    """

    def __init__(self, connection: Connection, begin: Begin, slots: int, shared_file: int):
        load_again(begin.plugins)
        recipe: Recipe = shared(shared_file, begin.spans)
        self._connection = connection
        self._sending = threading.Lock()
        self._filler = Filler(recipe, begin.cache_bytes)
        self._layout = recipe.layout
        self._memory = Memory(slots, begin.slot_bytes, self._layout)

    def do(self, job: Job) -> None:
        """Fills the rows of a job and says so."""
        try:
            out = self._memory[job.slot]
            self._layout.clear(out, job.part.rows)
            reply = Reply(job.number, tally=self._filler.fill(out, job.part))
        except BaseException as error:
            reply = Reply(job.number, error=portable(error))
        with self._sending:
            self._connection.send(reply)


def work(connection: Connection, parent: int, slots: int, shared_file: int, threads: int) -> None:
    """Serves a parent until it says None or is gone.

    Args:
      parent: its process number.
      slots, shared_file: as in `Work`.
    """
    faulthandler.enable()
    try:
        jobs = Work(connection, connection.recv(), slots, shared_file)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        connection.send(Reply(None, error=portable(error)))
        os._exit(1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="jaxvl-read")
    try:
        while (job := _next(connection, parent)) is not None:
            pool.submit(jobs.do, job)
        pool.shutdown(wait=True, cancel_futures=True)
    finally:
        os._exit(0)  # threads that read are not waited for: nobody is there to take what they read


def _next(connection: Connection, parent: int) -> Job | None:
    """The next job. Raises EOFError where the parent has gone; a child of it that holds the
    connection open may hide that."""
    while not connection.poll(LOOK):
        if os.getppid() != parent:
            raise EOFError
    return connection.recv()


def portable(error: BaseException) -> bytes:
    """An exception for the parent, with where it came from; one that cannot be pickled becomes a
    RuntimeError that says the same."""
    error.add_note(f"In a reader process:\n{''.join(traceback.format_exception(error))}")
    try:
        data = cloudpickle.dumps(error)
        pickle.loads(data)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        return pickle.dumps(plain)
    return data
