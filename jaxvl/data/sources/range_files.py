"""Reading parts of many files, local ones and remote ones."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Sequence

from jaxvl import paths
from jaxvl.data.records import DataError
from jaxvl.data.sources.remembered import why
from jaxvl.paths import FileState

MOST_OPEN = 64  # local files
LOOK_AGAIN = 0.25  # seconds after which it is looked up again whether a local file is what it was
LOOK_AGAIN_REMOTE = 300.0
# Ranges that are at most so far apart are read as one.
GAP = 4 * 2**10
GAP_REMOTE = 256 * 2**10


class _Open:
    """A local file that is open."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.users = 0
        self.looked = time.monotonic()


class RangeFiles:
    """Thread-safe reading of byte ranges. A file that is no longer what it was is an error, never
    other bytes.

    Args:
      most_open: local files that stay open.
    """

    def __init__(self, most_open: int = MOST_OPEN):
        self._most_open = most_open
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[str, _Open] = collections.OrderedDict()
        self._looked: dict[str, float] = {}  # remote file -> when its state was asked for

    def __getstate__(self) -> int:
        return self._most_open

    def __setstate__(self, most_open: int) -> None:
        self.__init__(most_open)

    def __del__(
        self, close=os.close, suppress=contextlib.suppress
    ):  # modules may be gone at the end of Python
        for file in self._open.values():
            with suppress(OSError):
                close(file.descriptor)

    def read(self, name: str, state: FileState, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of (offset, size) ranges of a file that should be in `state`.

        Raises:
          DataError: the file is gone, has changed, or cannot be read.
        """
        remote = paths.is_remote(name)
        together = _merge(ranges, GAP_REMOTE if remote else GAP)
        try:
            if remote:
                self._check_remote(name, state)
                parts = [paths.read_range(name, start, stop - start) for start, stop in together]
            else:
                parts = self._read_local(name, state, together)
        except FileNotFoundError:
            raise DataError(f"{name}: is not there any more") from None
        except OSError as error:
            raise DataError(why(error, name)) from None
        if any(len(part) != stop - start for part, (start, stop) in zip(parts, together)):
            raise DataError(
                f"{name}: has become shorter while it is read; start again once it is whole"
            )
        return _cut(ranges, together, parts)

    def _read_local(
        self, name: str, state: FileState, together: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        file = self._take(name, state)
        try:
            now = time.monotonic()
            if now - file.looked > LOOK_AGAIN:
                file.looked = now
                _check_same(name, state, paths.file_state(name))
            return [_read_whole(file.descriptor, start, stop - start) for start, stop in together]
        finally:
            with self._lock:
                file.users -= 1

    def _take(self, name: str, state: FileState) -> _Open:
        """An open file, which is not closed before its `users` are 0 again."""
        file = self._use(name)
        if file is not None:
            return file
        # Without the lock: a disk that is slow to open a file holds up nobody who reads another
        # one.
        _check_same(name, state, paths.file_state(name))
        opened = _Open(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        file = self._use(name, opened)
        if file is not opened:
            os.close(opened.descriptor)
        return file

    def _use(self, name: str, opened: _Open | None = None) -> _Open | None:
        """The open file of a name, with one more user; `opened` where there is none yet."""
        with self._lock:
            file = self._open.get(name, opened)
            if file is None:
                return None
            self._open[name] = file
            self._open.move_to_end(name)
            file.users += 1
            self._close_oldest()
            return file

    def _close_oldest(self) -> None:
        spare = len(self._open) - self._most_open
        unused = [name for name, file in self._open.items() if file.users == 0] if spare > 0 else []
        for name in unused[: max(spare, 0)]:
            if name != next(reversed(self._open)):
                os.close(self._open.pop(name).descriptor)

    def _check_remote(self, name: str, state: FileState) -> None:
        now = time.monotonic()
        if now - self._looked.setdefault(name, now) > LOOK_AGAIN_REMOTE:
            self._looked[name] = now
            _check_same(name, state, paths.file_state(name))


def _check_same(name: str, before: FileState, now: FileState) -> None:
    """Raises DataError where a file has changed."""
    if now != before:
        size = (
            f"{before.size:,} bytes, now {now.size:,}"
            if now.size != before.size
            else "of the same size"
        )
        raise DataError(
            f"{name}: was replaced or is still being written ({size}); start again once it is whole"
        )


def _merge(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """(offset, size) -> (start, stop) of fewer reads, in order."""
    if len(ranges) == 1:
        return [(ranges[0][0], ranges[0][0] + ranges[0][1])]
    together: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if together and start <= together[-1][1] + gap:
            together[-1] = (together[-1][0], max(together[-1][1], start + size))
        else:
            together.append((start, start + size))
    return together


def _cut(
    ranges: Sequence[tuple[int, int]], together: Sequence[tuple[int, int]], parts: Sequence[bytes]
) -> list[bytes]:
    """The bytes of each range, out of those that were read together."""
    if len(ranges) == 1:
        return list(parts)
    found = []
    for offset, size in ranges:
        for (start, stop), part in zip(together, parts):
            if start <= offset and offset + size <= stop:
                found.append(part[offset - start : offset - start + size])
                break
    return found


def _read_whole(descriptor: int, start: int, size: int) -> bytes:
    """Linux reads at most 2 GiB at a time, and a signal may cut a read short."""
    data = os.pread(descriptor, size, start)
    if len(data) == size:
        return data
    parts = [data]
    read = len(data)
    while data and read < size:
        data = os.pread(descriptor, size - read, start + read)
        parts.append(data)
        read += len(data)
    return b"".join(parts)
