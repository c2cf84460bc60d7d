"""Memory that processes share without a name: it is gone when they end.

However they end.
It is no part of /dev/shm, which containers often keep small.
"""

from __future__ import annotations

import collections
import ctypes
import mmap
import os
import pickle
import tempfile
import threading
import weakref
from collections.abc import Sequence

import cloudpickle

ALIGNED = 64  # bytes
Span = tuple[int, int]  # first byte, and the one after the last


def nameless_file() -> int:
    """Descriptor of an empty file in memory; where the system has none, of one on disk that nobody
    else can open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jaxvl", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slots:
    """Pieces of shared memory of one size, used again and again.

    There are as many as are in use at a time. One is in use as long as anything refers to what
    `take` gave, an array of it or an array that jax has taken over without copying: it can never be
    overwritten while it can be read.

    Args:
      size: bytes that each holds at least.

    Attributes:
      size: bytes of each.
      file: descriptor of the memory; slot `i` begins at byte `i * size`.
    """

    def __init__(self, size: int):
        self.size = max(1, -(-size // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY
        self.file = nameless_file()
        self._type = ctypes.c_char * self.size
        self._maps: list[mmap.mmap] = []
        self._free: collections.deque[int] = (
            collections.deque()
        )  # filled by whatever thread drops a slot: no lock
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Slots so far."""
        return len(self._maps)

    def take(self) -> tuple[int, ctypes.Array]:
        """A slot that nobody uses, and its memory as a buffer with whatever it held before."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._add()
        memory = self._type.from_buffer(self._maps[slot])
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return slot, memory

    def _add(self) -> int:
        with self._lock:
            slot = len(self._maps)
            os.ftruncate(self.file, (slot + 1) * self.size)
            self._maps.append(mmap.mmap(self.file, self.size, offset=slot * self.size))
            return slot

    def close(self) -> None:
        """No more slots are taken. Memory is given back when nothing refers to it."""
        os.close(self.file)


def share(value: object) -> tuple[int, list[Span]]:
    """A value for other processes: a file with its pickle and its arrays, of which all of them read
    the same memory, and where each lies.

    Raises:
      Exception: it cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    rest = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    file = nameless_file()
    spans = []
    end = 0
    with open(file, "wb", closefd=False) as out:
        for content in [memoryview(rest), *(buffer.raw() for buffer in buffers)]:
            out.seek(end)
            out.write(content)
            spans.append((end, end + content.nbytes))
            end = -(-spans[-1][1] // ALIGNED) * ALIGNED
    return file, spans


def shared(file: int, spans: Sequence[Span]) -> object:
    """What `share` was given, in another process. An array costs memory of its own only where it is
    written to. Closes the file."""
    content = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))
    os.close(file)
    rest, *buffers = [content[first:end] for first, end in spans]
    return pickle.loads(rest, buffers=buffers)
