"""Processes that read records and write rows straight into memory that they share with this one.

A worker is a new Python that imports what reading needs; it never starts jax's devices, and it does
not import the script of this process. It opens the source again. What goes to it for a row is the
record's number with the field's draws; what comes back is counts.

A worker ends when this process closes its pool, and when this process ends, however that happens.
It leaves interrupts and requests to end to this process, so that a run can still save.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import Pipe, spawn
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import ConfigError, Plugin, loaded_plugins
from jaxvl.data.reading.fill import Filler, Part, Recipe, Tally
from jaxvl.data.reading.memory import Slots, Span, share
from jaxvl.data.reading.pool import Pool
from jaxvl.data.records import DataError

PATIENCE = 10.0  # seconds that a worker has to end by itself
# A path for imports comes first, so that jaxvl is found as it is here.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from jaxvl.data.reading.worker import work
work(connection, *map(int, sys.argv[2:]))
"""
# Each worker is one of several on a machine: no library is to start a thread for each core.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Begin(NamedTuple):
    """First message to a worker.

    Attributes:
      plugins: that this process has loaded; classes of the recipe may come from them.
      spans: where in its file the recipe lies, as `memory.share` gave it.
      slot_bytes: size of a slot.
      cache_bytes: what the worker may keep in memory.
    """

    plugins: tuple[Plugin, ...]
    spans: list[Span]
    slot_bytes: int
    cache_bytes: int


class Job(NamedTuple):
    """Rows of a batch for a worker. `slot` is the memory of the batch."""

    number: int
    slot: int
    part: Part


class Reply(NamedTuple):
    """What became of a job: what reading its records has met, or an exception, pickled. Without a
    number, the worker could not begin."""

    number: int | None
    tally: Tally | None = None
    error: bytes | None = None


class Child(NamedTuple):
    """A worker, as this process sees it."""

    number: int
    process: subprocess.Popen
    connection: Connection
    sending: threading.Lock


class Processes(Pool):
    """`reader.processes` workers with `reader.threads` threads each.

    A record is always read by the same worker where records are kept in memory, so that the workers
    together keep each once, in `reader.cache_mb`; without a cache they share a batch equally.

    Args:
      recipe: what is read, and how.

    Raises:
      ConfigError: at `reader.processes`, where the recipe cannot be given to another process.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self._lock = threading.Lock()
        Filler(recipe, 0)  # raises what is wrong with the fields
        reader = recipe.config.reader
        self._name = recipe.source.name
        self._layout = recipe.layout
        self._pieces = reader.threads  # no more: a message takes as long as a few rows of text
        self._cached = reader.cache_mb > 0
        self._numbers = itertools.count()
        self._jobs: dict[
            int, tuple[Future[Tally], HostArrays]
        ] = {}  # arrays stay in use until nobody writes into them
        self._failure: Exception | None = None
        self._closed = False
        self._slots = Slots(self._layout.nbytes)
        self._children: list[Child] = []
        try:
            self._start(recipe)
        except BaseException:
            self._slots.close()
            for child in self._children:
                child.process.kill()
            raise
        self._thread = threading.Thread(target=self._listen, name="jaxvl-read", daemon=True)
        self._thread.start()

    def _start(self, recipe: Recipe) -> None:
        reader = recipe.config.reader
        try:
            file, spans = share(recipe)
        except Exception as error:  # pickle raises many types
            problem = (
                f"{self._name} cannot be given to other processes ({type(error).__name__}: "
                f"{error}); set it to 0"
            )
            raise ConfigError("reader.processes", problem) from error
        begin = Begin(
            loaded_plugins(), spans, self._slots.size, reader.cache_mb * 2**20 // reader.processes
        )
        try:
            for number in range(reader.processes):
                self._children.append(_child(number, [self._slots.file, file, reader.threads]))
            self.pids = [child.process.pid for child in self._children]
            for child in self._children:
                child.connection.send(sys.path)
                child.connection.send(begin)
        except OSError as error:
            raise DataError(
                f"{self._name}: cannot start {reader.processes} reader processes ({error})"
            ) from None
        finally:
            os.close(file)

    @property
    def slots(self) -> int:
        """Batches of which there is memory."""
        return len(self._slots)

    def begin(self, part: Part) -> tuple[HostArrays, list[Future[Tally]]]:
        """See `Pool`. Raises what ended a worker."""
        slot, memory = self._slots.take()
        out = self._layout.within(memory)
        jobs = []
        for child, share_of_it in zip(self._children, self._shares(part.numbers)):
            for piece in part.some(share_of_it).cut(self._pieces):
                jobs.append(self._send(child, slot, piece, out))
        return out, jobs

    def _shares(self, numbers: np.ndarray) -> Sequence[np.ndarray]:
        """Rows of each worker."""
        workers = len(self._children)
        if self._cached:
            return [np.flatnonzero(numbers % workers == worker) for worker in range(workers)]
        return np.array_split(np.arange(len(numbers)), workers)

    def _send(self, child: Child, slot: int, part: Part, out: HostArrays) -> Future[Tally]:
        future: Future[Tally] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot read after shutdown")
            if self._failure is not None:
                raise self._failure
            number = next(self._numbers)
            self._jobs[number] = future, out
        try:
            with child.sending:
                child.connection.send(Job(number, slot, part))
        except OSError:
            pass  # it has ended; `_listen` finds out why, and fails the job
        return future

    def _listen(self) -> None:
        """Takes in what the workers say, until all of them have ended."""
        living = {child.connection: child for child in self._children}
        while living:
            for connection in wait(list(living)):
                try:
                    reply = connection.recv()
                except (EOFError, OSError):
                    self._ended(living.pop(connection))
                else:
                    self._heard(reply)

    def _heard(self, reply: Reply) -> None:
        error = None if reply.error is None else _unpickled(reply.error)
        if reply.number is None:
            self._fail(error)
            return
        with self._lock:
            future, _ = self._jobs.pop(reply.number, (None, None))
        if future is None:
            return  # it was given up
        if error is None:
            future.set_result(reply.tally)
        else:
            future.set_exception(error)

    def _ended(self, child: Child) -> None:
        cause = ended_by(child.process.wait())
        if not self._closed:
            of = (
                f"reader process {child.number + 1} of {len(self._children)} (pid "
                f"{child.process.pid})"
            )
            self._fail(DataError(f"{self._name}: {of} {cause}"))

    def _fail(self, error: Exception) -> None:
        """All that is asked for, now and later, raises the error, or the one before it."""
        with self._lock:
            self._failure = self._failure or error
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for future, _ in jobs:
            future.set_exception(self._failure)

    def close(self) -> None:
        """See `Pool`. Waits for what is being read."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for child in self._children:
            try:
                with child.sending:
                    child.connection.send(None)
            except OSError:
                pass  # it has ended
        for child in self._children:
            try:
                child.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.process.kill()
        self._thread.join(PATIENCE)
        self._fail(RuntimeError("reading was shut down"))
        for child in self._children:
            child.connection.close()
        self._slots.close()


def _child(number: int, arguments: Sequence[int]) -> Child:
    """Starts a worker; the first two of `arguments` are descriptors that it inherits."""
    here, there = Pipe()
    command = [
        spawn.get_executable(),
        "-c",
        PROGRAM,
        str(there.fileno()),
        str(os.getpid()),
        *map(str, arguments),
    ]
    environment = {**ENVIRONMENT, **os.environ, "JAX_PLATFORMS": "cpu"}
    # A new process has this thread's mask: no signal ends it before it ignores them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        inherited = [there.fileno(), *arguments[:2]]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, pass_fds=inherited
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()
    return Child(number, process, here, threading.Lock())


def ended_by(status: int) -> str:
    """What an exit status of a process says."""
    if status >= 0:
        return f"has ended with exit status {status}; its last words are above"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = (
        (
            "; the system does so when memory runs out: fewer reader.processes, or a smaller "
            "reader.cache_mb"
        )
        if name == "SIGKILL"
        else ""
    )
    return f"was ended by {name}{hint}"


def _unpickled(data: bytes) -> Exception:
    try:
        error: Any = pickle.loads(data)
    except Exception as failed:
        return RuntimeError(
            f"a reader process raised what cannot be read here ({type(failed).__name__}: {failed})"
        )
    return error
