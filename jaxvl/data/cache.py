"""What the loader keeps in memory, within a number of bytes.

Which values are kept: a full cache takes in one new value of 64, and drops random ones for it. An
epoch is a new permutation, so the value that was used last is no likelier to come next: with room
for a share c of the records, "least recently used" finds about c² / 2 of them, dropping a random
one for each new one somewhat more, and keeping the first ones c, which is the most that can be had
without knowing the order. One of 64 comes within a tenth of that, and follows when other records
are asked for (another part of a mixture, other languages).
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from PIL import Image

ADMITTED = 1 / 64  # of the values that are new to a full cache
ENTRY = 200  # bytes of an entry beside key and value: its places in two tables


class Cache:
    """Values by key, of at most `limit` bytes together. Safe with threads.

    What is in it never changes what a run computes, so its random numbers need no seed.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._entries: dict[
            Hashable, tuple[Any, int, int]
        ] = {}  # key -> value, bytes, place in `_keys`
        self._keys: list[Hashable] = []
        self._lock = threading.Lock()
        self._random = random.Random(0)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: Hashable) -> object | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: Hashable, value: object) -> None:
        """Keeps `value`, or does not: see the module's text."""
        if not self.limit:
            return
        size = ENTRY + size_of(key) + size_of(value)
        with self._lock:
            if key in self._entries or size > self.limit:
                return
            if self.used + size > self.limit and self._random.random() >= ADMITTED:
                return
            while self.used + size > self.limit:
                self._drop(self._random.randrange(len(self._keys)))
            self._entries[key] = value, size, len(self._keys)
            self._keys.append(key)
            self.used += size

    def _drop(self, place: int) -> None:
        """The last key takes the place of the one that goes."""
        _, size, _ = self._entries.pop(self._keys[place])
        self.used -= size
        last = self._keys.pop()
        if place < len(self._keys):
            self._keys[place] = last
            value, bytes_of_last, _ = self._entries[last]
            self._entries[last] = value, bytes_of_last, place


def size_of(value: object) -> int:
    """Bytes of memory that a value holds, with all that is in it."""
    if isinstance(value, np.ndarray):
        whole = value  # a view keeps the whole of what it is a view of
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        return sys.getsizeof(np.empty(0)) + whole.nbytes
    if isinstance(value, Image.Image):
        return sys.getsizeof(value) + value.width * value.height * (
            1 if value.mode in ("1", "L", "P") else 4
        )
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return size + sum(size_of(item) for item in value)
    return size
