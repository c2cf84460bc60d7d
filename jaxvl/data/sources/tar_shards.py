"""The shards of a dataset with their indexes, which are made once and kept.

An index lies beside its shard as `SHARD.jaxvl.idx`; that of a remote shard, or of one in a folder
that may only be read, in `tar_index/` of the cache folder. What is needed of all shards to open
them is kept there as one file, a catalogue: it is named by the shards' names, sizes and times, so
that thousands of shards are opened by listing them and reading one file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import mmap
import os
import pathlib
import random
import threading
import time
from collections.abc import Sequence

import msgpack

from jaxvl import paths
from jaxvl.config.errors import shown
from jaxvl.data.folders import cache_folder
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.remembered import states_of, why
from jaxvl.data.sources.shard_counts import count_notes
from jaxvl.data.sources.tar_index import VERSION, BadIndex, TarIndex, make_index, read_index
from jaxvl.paths import FileState

ENDING = ".jaxvl.idx"
FOLDER = "tar_index"
MOST_HELD = 64 * 2**20  # bytes of indexes in memory
MAPPED = 4 * 2**20  # an index that is larger is mapped into memory, and counts as if it had
COST_OF_MAPPED = 2**20  # bytes; each keeps a file open
PIECE_REMOTE = 8 * 2**20  # bytes that are read of a remote shard at a time
INDEXED_AT_ONCE = 8  # shards
SAID_EVERY = 10.0  # seconds
MOST_NOTES = 3  # of single indexes


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar file.

    Attributes:
      file: its path or URL.
      state: size and version when it was opened.
      samples: how many it holds.
      digest: of its index.
      left_out: cause -> number of members that are in no sample, and the first one's name.
    """

    file: str
    state: FileState
    samples: int
    digest: str
    left_out: dict[str, tuple[int, str]]


MOST_SUFFIXES = 2000  # that are kept in a catalogue


@dataclasses.dataclass(frozen=True)
class Shards:
    """Indexed tar files.

    Attributes:
      shards: in order.
      suffixes: of the members of all of them, sorted; None where they are too many.
      notes: what is odd about the counts that are noted beside them.
    """

    shards: list[Shard]
    suffixes: list[str] | None
    notes: list[str]


def open_shards(files: Sequence[str], log: Log, index_folder: paths.Path | None = None) -> Shards:
    """The shards, indexed; what is odd about them is said.

    Args:
      index_folder: where indexes are kept instead of beside the shards.

    Raises:
      DataError: a file is not there or is no tar.
    """
    states = states_of(files)
    catalogue = _catalogue_file(files, states)
    found = _read_catalogue(catalogue, files, states)
    if found is None:
        shards, suffixes = _index_all(files, states, log, index_folder)
        notes = count_notes({shard.file: shard.samples for shard in shards})
        found = Shards(shards, sorted(suffixes) if len(suffixes) <= MOST_SUFFIXES else None, notes)
        _keep(catalogue, _catalogue(found), log)
    for note in [*_left_out(found.shards), *found.notes]:
        log(note)
    return found


def _left_out(shards: Sequence[Shard]) -> list[str]:
    """One sentence for each cause why members are in no sample."""
    members: dict[str, int] = {}
    first: dict[str, str] = {}
    for shard in shards:
        for cause, (n, name) in shard.left_out.items():
            members[cause] = members.get(cause, 0) + n
            first.setdefault(cause, f"{shard.file}: {shown(name)}")
    return [
        f"left out of the tar shards: {cause}: {n:,} (first: {first[cause]})"
        for cause, n in sorted(members.items())
    ]


def _catalogue_file(files: Sequence[str], states: Sequence[FileState]) -> paths.Path:
    digest = hashlib.sha256(str(VERSION).encode())
    for file, state in zip(files, states):
        digest.update(
            f"{_full_name(file)}\0{state.size}\0{state.version}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
    return cache_folder() / FOLDER / f"{digest.hexdigest()[:32]}.catalogue"


def _catalogue(found: Shards) -> bytes:
    entries = [[shard.samples, shard.digest, shard.left_out] for shard in found.shards]
    return msgpack.packb(
        [VERSION, entries, found.suffixes, found.notes], unicode_errors="surrogateescape"
    )


def _read_catalogue(
    file: paths.Path, files: Sequence[str], states: Sequence[FileState]
) -> Shards | None:
    """None where the catalogue is not there or damaged."""
    try:
        version, entries, suffixes, notes = msgpack.unpackb(
            paths.read_bytes(file), unicode_errors="surrogateescape"
        )
        if version != VERSION or len(entries) != len(files):
            return None
        shards = []
        for name, state, (samples, digest, left_out) in zip(files, states, entries):
            causes = {str(cause): (int(n), str(first)) for cause, (n, first) in left_out.items()}
            shards.append(Shard(name, state, int(samples), str(digest), causes))
        return Shards(shards, suffixes, notes)
    except FileNotFoundError:
        return None
    except Exception:  # msgpack raises many types for one damaged file; the indexes say the same
        return None


def _index_all(
    files: Sequence[str], states: Sequence[FileState], log: Log, folder: paths.Path | None
) -> tuple[list[Shard], set[str]]:
    """Finds or makes the indexes, several at a time; the shards, and some suffixes more than
    MOST_SUFFIXES or all of them."""
    progress = _Progress(len(files), sum(state.size for state in states), log)
    shards: list[Shard | None] = [None] * len(files)
    suffixes: set[str] = set()

    def index(i: int) -> None:
        index, made = find_or_make(files[i], states[i], progress.note, folder)
        shards[i] = Shard(files[i], states[i], len(index), index.digest, dict(index.left_out))
        suffixes.update(index.suffixes[: MOST_SUFFIXES + 1])
        progress.add(states[i].size if made else 0)

    order = list(range(len(files)))
    random.Random(os.getpid()).shuffle(
        order
    )  # so that hosts that share a folder do not index the same shard at the same time
    with concurrent.futures.ThreadPoolExecutor(INDEXED_AT_ONCE) as pool:
        for done in concurrent.futures.as_completed([pool.submit(index, i) for i in order]):
            try:
                done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.end()
    return [shard for shard in shards if shard is not None], suffixes


class _Progress:
    """Says every few seconds how far the indexing is."""

    def __init__(self, shards: int, size: int, log: Log):
        self._shards = shards
        self._size = size
        self._log = log
        self._start = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._done = self._made = self._bytes = self._notes = 0

    def note(self, line: str) -> None:
        """Says the first ones of what may be said of every shard."""
        with self._lock:
            self._notes += 1
            if self._notes <= MOST_NOTES:
                self._log(line)

    def add(self, size: int) -> None:
        """Counts a shard that is indexed, and the bytes that were read of it."""
        with self._lock:
            self._done += 1
            self._bytes += size
            self._made += size > 0
            if time.monotonic() - self._said > SAID_EVERY:
                self._said = time.monotonic()
                self._log(f"indexing tar shards: {self._done:,} of {self._shards:,}")

    def end(self) -> None:
        """Says how fast it went."""
        if self._notes > MOST_NOTES:
            self._log(f"… and {self._notes - MOST_NOTES:,} more indexes likewise")
        seconds = max(time.monotonic() - self._start, 1e-3)
        if self._made:
            speed = self._bytes / seconds / 1e6
            self._log(
                f"indexed {self._made:,} tar shards, {self._bytes / 1e6:,.0f} MB in "
                f"{seconds:.1f} s ({speed:,.0f} MB/s)"
            )


def find_or_make(
    file: str,
    state: FileState,
    log: Log,
    folder: paths.Path | None = None,
    check_digest: bool = True,
) -> tuple[TarIndex, bool]:
    """The index of a shard, and whether it was made just now.

    Args:
      check_digest: whether its whole content is looked at.

    Raises:
      DataError: the shard is no tar or cannot be read.
    """
    places = _places(file, folder)
    for place in places:
        index = _find(place, state, log, check_digest)
        if index is not None:
            return index, False
    index = _make(file, state)
    for place in places:
        try:
            paths.make_folder(place.parent)
            paths.write_bytes(place, index.to_bytes())
            return index, True
        except OSError as error:
            failed = f"{place}: the index cannot be kept there ({type(error).__name__}: {error})"
    log(failed)
    return index, True


def _places(file: str, folder: paths.Path | None) -> list[paths.Path]:
    """Where the index of a shard may lie, the best first."""
    name = hashlib.sha256(_full_name(file).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if folder is not None:
        return [folder / f"{name}{ENDING}"]
    cached = cache_folder() / FOLDER / f"{name}{ENDING}"
    return [cached] if paths.is_remote(file) else [pathlib.Path(file + ENDING), cached]


def _full_name(file: str) -> str:
    return file if paths.is_remote(file) else os.path.abspath(file)


def _find(place: paths.Path, state: FileState, log: Log, check_digest: bool) -> TarIndex | None:
    """The index at a place; None where there is none, or one that is damaged or of another state of
    the shard."""
    try:
        index = open_index(place, check_digest)
    except OSError:
        return None
    except BadIndex as error:
        log(f"{place}: the index is damaged ({error}) and made anew")
        return None
    if index.state != state:
        log(f"{place}: the shard has changed since it was indexed; the index is made anew")
        return None
    return index


def open_index(place: paths.Path, check_digest: bool) -> TarIndex:
    """Raises OSError, BadIndex."""
    if paths.is_remote(place):
        return read_index(paths.read_bytes(place), check_digest)
    with open(place, "rb") as file:
        if os.fstat(file.fileno()).st_size <= MAPPED:
            return read_index(file.read(), check_digest)
        return read_index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), check_digest)


def _make(file: str, state: FileState) -> TarIndex:
    """Reads the headers of a shard. Raises DataError."""
    try:
        if paths.is_remote(file):
            index = make_index(
                file, state, lambda start, size: paths.read_range(file, start, size), PIECE_REMOTE
            )
        else:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                index = make_index(
                    file, state, lambda start, size: os.pread(descriptor, size, start)
                )
            finally:
                os.close(descriptor)
        now = paths.file_state(file)
    except OSError as error:
        raise DataError(why(error, file)) from None
    if now != state:
        raise DataError(
            f"{file}: is still being written ({state.size:,} bytes, now {now.size:,}); start "
            f"again once it is whole"
        )
    return index


def _keep(file: paths.Path, content: bytes, log: Log) -> None:
    try:
        paths.make_folder(file.parent)
        paths.write_bytes(file, content)
    except OSError as error:
        log(
            f"{file}: cannot be kept there ({type(error).__name__}: {error}); the next start "
            f"reads every index"
        )


class Indexes:
    """The indexes of shards, opened when they are needed; those used last stay in memory.
    Thread-safe.

    Args:
      shards: whose indexes they are.
      folder: see `open_shards`.
    """

    def __init__(self, shards: Sequence[Shard], folder: paths.Path | None, log: Log):
        self._shards = shards
        self._folder = folder
        self._log = log
        self._lock = threading.Lock()
        self._held: collections.OrderedDict[int, TarIndex] = collections.OrderedDict()
        self._cost = 0
        self._checked: set[int] = set()

    def __getitem__(self, i: int) -> TarIndex:
        """The index of shard `i`. Raises DataError where the shard is no longer what it was."""
        with self._lock:
            index = self._held.get(i)
            if index is not None:
                self._held.move_to_end(i)
                return index
        shard = self._shards[i]
        index, _ = find_or_make(
            shard.file, shard.state, self._log, self._folder, i not in self._checked
        )
        if index.digest != shard.digest:
            raise DataError(f"{shard.file}: was replaced; start again")
        self._checked.add(i)
        self._hold(i, index)
        return index

    def _hold(self, i: int, index: TarIndex) -> None:
        with self._lock:
            if i in self._held:
                return
            self._held[i] = index
            self._cost += _cost(index)
            while self._cost > MOST_HELD and len(self._held) > 1:
                _, oldest = self._held.popitem(last=False)
                self._cost -= _cost(oldest)

    def __getstate__(self) -> tuple[Sequence[Shard], paths.Path | None]:
        return self._shards, self._folder

    def __setstate__(self, state: tuple[Sequence[Shard], paths.Path | None]) -> None:
        self.__init__(*state, log=print)


def _cost(index: TarIndex) -> int:
    """Bytes that count for an index that is held."""
    size = index.nbytes
    return size if size <= MAPPED else COST_OF_MAPPED
