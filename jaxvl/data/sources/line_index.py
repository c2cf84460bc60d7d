"""Where the records of text files begin: found once, kept in the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl import paths
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.other_formats import other_format
from jaxvl.data.sources.places import Places, name_of
from jaxvl.data.sources.range_files import RangeFiles
from jaxvl.data.sources.remembered import key_of, remembered_arrays, states_of
from jaxvl.data.sources.table import Chosen, ParsedTable
from jaxvl.paths import FileState

CHUNK = 2**23  # bytes that are read at once
HEAD = 64  # bytes from the start that tell another format
# Lines of a file, each with its end, and for each record: its start, and the number of its first
# line.
Split = Callable[[Iterator[bytes], str], Iterator[int]]


class RecordFiles:
    """Records by number over text files. Thread-safe; picklable.

    Attributes:
      files: their names.
      places: of the records.
      digest: SHA-256 of all content.

    Args:
      files: local or remote.
      split: from a file's lines to the offsets at which its records begin, and the end of the last
        one.
      what: says which split this is, with its options.
      log: told of long work.

    Raises:
      DataError: a file is not there, or `split` refuses it.
    """

    def __init__(self, files: Sequence[str], split: Split, what: Sequence[object], log: Log):
        self.files = list(files)
        self._states = states_of(files)
        self._ranges = RangeFiles()
        indexes = []
        sizes = []
        digest = hashlib.sha256()
        for file, state in zip(files, self._states):
            key = key_of("lines", [file], [state], what)
            starts, about = remembered_arrays(
                "lines",
                key,
                lambda file=file, state=state: self._index(file, state, split, log),
                log,
            )
            indexes.append(starts)
            sizes.append(max(len(starts) - 1, 0))
            digest.update(about["sha256"].encode())
        self._indexes = indexes
        self.places = Places(sizes)
        self.digest = digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_indexes": [_Mapped.of(index) for index in self._indexes]}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._indexes = [index.open() for index in state["_indexes"]]

    def __len__(self) -> int:
        return len(self.places)

    def _index(
        self, file: str, state: FileState, split: Split, log: Log
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if state.size > 2**30:
            log(
                f"{file}: reading it through once, to find where its "
                f"{state.size / 2**30:,.1f} GiB of records begin"
            )
        digest = hashlib.sha256()
        starts = np.fromiter(split(self._lines(file, state, digest), file), np.int64)
        return starts, {"sha256": digest.hexdigest()}

    def _lines(self, file: str, state: FileState, digest: Any) -> Iterator[bytes]:
        r"""Lines with their ends (`\n`)."""
        left = b""
        for start in range(0, state.size, CHUNK):
            [chunk] = self._ranges.read(file, state, [(start, min(CHUNK, state.size - start))])
            known = other_format(chunk[:HEAD]) if start == 0 else None
            if known is not None:
                raise DataError(f"{file}: {known}")
            digest.update(chunk)
            *lines, last = (left + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"
            left = last
        if left:
            yield left

    def where(self, i: int) -> str:
        """A record's place, for messages."""
        file, number = self.places[i]
        return f"{self.files[file]}, record {number}"

    def content(self, i: int) -> bytes:
        """A record's bytes. Raises DataError where its file is gone or has changed."""
        file, number = self.places[i]
        start, end = (int(offset) for offset in self._indexes[file][number : number + 2])
        [content] = self._ranges.read(self.files[file], self._states[file], [(start, end - start)])
        return content

    def head(self, file: int, size: int) -> bytes:
        """The first bytes of a file."""
        size = min(size, self._states[file].size)
        [content] = self._ranges.read(self.files[file], self._states[file], [(0, size)])
        return content


class _Mapped:
    """An index on its way to another process: the name of its file, where it has one."""

    def __init__(self, file: str | None, array: np.ndarray | None):
        self._file = file
        self._array = array

    @classmethod
    def of(cls, index: np.ndarray) -> _Mapped:
        """What is sent of an index."""
        if isinstance(index, np.memmap) and index.filename is not None:
            return cls(str(index.filename), None)
        return cls(None, np.asarray(index))

    def open(self) -> np.ndarray:
        """The index. Raises DataError where its file is gone."""
        if self._file is None:
            return self._array
        try:
            return np.load(self._file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._file}: the index is gone from the cache folder ({error}); start again"
            ) from None


def default_media_root(files: Sequence[str]) -> str:
    """The folder of the first file: what paths in records are relative to, unless the config says
    something else."""
    folder = (
        files[0].rpartition("/")[0]
        if paths.is_remote(files[0])
        else str(paths.as_path(files[0]).absolute().parent)
    )
    return folder or "/"


class TextTable(ParsedTable):
    """A table whose rows are records of text files. A shard is a file.

    Args:
      records: the rows.
      chosen, media: see `TableSource`.
    """

    def __init__(self, records: RecordFiles, chosen: Mapping[str, Chosen], media: MediaFolder):
        super().__init__(name_of(records.files), records.digest, chosen, media)
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._records.places.shards()

    def where(self, i: int) -> str:
        """See `TableSource`."""
        return self._records.where(i)
