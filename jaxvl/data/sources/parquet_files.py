"""Footers and row groups of Parquet files, local or remote, read by pyarrow."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from jaxvl.aliases import Json
from jaxvl.data.records import DataError
from jaxvl.data.sources.other_formats import other_format
from jaxvl.data.sources.range_files import RangeFiles
from jaxvl.paths import FileState

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MAGIC = b"PAR1"
TAIL = 2**16  # bytes from the end that are read at once: most footers are shorter
HEAD = 64  # bytes from the start that tell another format
MOST_FOOTERS = 256  # in memory


@dataclasses.dataclass(frozen=True)
class Footer:
    """What is kept of a file's footer.

    Attributes:
      groups: rows of each row group.
      digest: SHA-256 of the footer and the file's size.
      types: column -> its Arrow type as a text.
      nulls: leaf column, as `image.bytes` -> how many rows have none; -1: not said.
      sizes: leaf column -> bytes in the largest row group, and in all.
    """

    groups: list[int]
    digest: str
    types: Mapping[str, str]
    nulls: Mapping[str, int]
    sizes: Mapping[str, Sequence[int]]

    def largest_group(self, columns: Collection[str]) -> int:
        """Bytes of the columns in the largest row group."""
        return sum(
            most
            for leaf, (most, _) in self.sizes.items()
            if any(leaf == c or leaf.startswith(f"{c}.") for c in columns)
        )

    def size(self, column: str) -> int:
        """Bytes of a column in all row groups."""
        return sum(
            total
            for leaf, (_, total) in self.sizes.items()
            if leaf == column or leaf.startswith(f"{column}.")
        )


def pack_footers(footers: Sequence[Footer]) -> list[Json]:
    """The footers as lists; what most of them have in common, the columns, is there once."""
    layouts: dict[tuple, int] = {}
    rows = []
    for footer in footers:
        layout = (tuple(footer.types.items()), tuple(footer.nulls), tuple(footer.sizes))
        place = layouts.setdefault(layout, len(layouts))
        rows.append(
            [
                footer.groups,
                footer.digest,
                place,
                list(footer.nulls.values()),
                *map(list, zip(*footer.sizes.values())),
            ]
        )
    return [[[list(part) for part in layout] for layout in layouts], rows]


def unpack_footers(packed: Sequence[Json]) -> list[Footer]:
    """The inverse of `pack_footers`."""
    layouts = [(dict(types), nulls, sizes) for types, nulls, sizes in packed[0]]
    footers = []
    for groups, digest, place, nulls, *sizes in packed[1]:
        types, leaves, sized = layouts[place]
        footers.append(
            Footer(groups, digest, types, dict(zip(leaves, nulls)), dict(zip(sized, zip(*sizes))))
        )
    return footers


def read_footer(file: str, state: FileState) -> Footer:
    """Raises DataError."""
    content = footer_bytes(RangeFiles(1), file, state)
    metadata = _parse(content, file)
    digest = hashlib.sha256(content + str(state.size).encode()).hexdigest()
    try:
        footer = _described(metadata, digest)
    except Exception as error:  # a damaged footer raises many types
        raise DataError(
            f"{file}: its footer cannot be read ({_line(error)}); it is damaged"
        ) from None
    if sum(footer.groups) != metadata.num_rows or any(rows < 0 for rows in footer.groups):
        raise DataError(
            f"{file}: its footer counts {metadata.num_rows} rows, its row groups "
            f"{sum(footer.groups)}; it is damaged"
        )
    return footer


def _described(metadata: pyarrow.parquet.FileMetaData, digest: str) -> Footer:
    groups: list[int] = []
    nulls: dict[str, int] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        groups.append(group.num_rows)
        for c in range(group.num_columns):
            column = group.column(c)
            leaf = column.path_in_schema
            size = column.total_uncompressed_size
            counted = column.is_stats_set and column.statistics.has_null_count
            before = nulls.get(leaf, 0)
            nulls[leaf] = before + column.statistics.null_count if counted and before >= 0 else -1
            most, total = sizes.get(leaf, (0, 0))
            sizes[leaf] = (max(most, size), total + size)
    types = {field.name: str(field.type) for field in metadata.schema.to_arrow_schema()}
    return Footer(groups, digest, types, nulls, sizes)


def footer_bytes(files: RangeFiles, file: str, state: FileState) -> bytes:
    """The footer with its length and magic. Raises DataError where the file has none."""
    start = max(state.size - TAIL, 0)
    [tail] = files.read(file, state, [(start, state.size - start)])
    if tail[-4:] == b"PARE":
        raise DataError(f"{file}: is encrypted, which is not read")
    if len(tail) < 12 or tail[-4:] != MAGIC:
        [head] = files.read(file, state, [(0, min(state.size, HEAD))])
        known = (
            other_format(head)
            or "has no footer: it was cut short, is still being written, or is no Parquet file"
        )
        raise DataError(f"{file}: {known}")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > state.size - len(MAGIC):
        raise DataError(f"{file}: its footer would begin before the file does; it is damaged")
    if length > len(tail):
        [tail] = files.read(file, state, [(state.size - length, length)])
    return tail[-length:]


def _parse(footer: bytes, file: str) -> pyarrow.parquet.FileMetaData:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(io.BytesIO(MAGIC + footer))
        metadata.schema.to_arrow_schema()
        return metadata
    except Exception as error:  # a damaged footer raises many types
        raise DataError(
            f"{file}: its footer cannot be read ({_line(error)}); it is damaged"
        ) from None


class ParquetFiles:
    """Thread-safe reading of single columns of row groups; those read last stay in memory.

    Attributes:
      files: their names.

    Args:
      states: of the files, as they should be.
      cache_bytes: of decoded columns.
    """

    def __init__(self, files: Sequence[str], states: Sequence[FileState], cache_bytes: int):
        self.files = list(files)
        self._states = list(states)
        self._cache_bytes = cache_bytes
        self._ranges = RangeFiles()
        self._lock = threading.Lock()
        self._footers: collections.OrderedDict[int, pyarrow.parquet.FileMetaData] = (
            collections.OrderedDict()
        )
        self._columns: collections.OrderedDict[tuple[int, int, str], concurrent.futures.Future] = (
            collections.OrderedDict()
        )
        self._kept: dict[tuple[int, int, str], int] = {}  # bytes

    def __reduce__(self):
        return ParquetFiles, (self.files, self._states, self._cache_bytes)

    def metadata(self, file: int) -> pyarrow.parquet.FileMetaData:
        """Raises DataError."""
        with self._lock:
            if file in self._footers:
                self._footers.move_to_end(file)
                return self._footers[file]
        name = self.files[file]
        metadata = _parse(footer_bytes(self._ranges, name, self._states[file]), name)
        with self._lock:
            self._footers[file] = metadata
            while len(self._footers) > MOST_FOOTERS:
                self._footers.popitem(last=False)
        return metadata

    def column(self, file: int, group: int, name: str) -> pyarrow.ChunkedArray:
        """A column of a row group, from memory where it is there; two threads never read the same
        one at once.

        Raises:
          DataError: it cannot be read.
        """
        key = (file, group, name)
        with self._lock:
            future = self._columns.get(key)
            mine = future is None
            if mine:
                future = self._columns[key] = concurrent.futures.Future()
            self._columns.move_to_end(key)
        if not mine:
            return future.result()
        try:
            column = self.read(file, group, name)
        except BaseException as error:
            with self._lock:
                self._columns.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            self._kept[key] = column.nbytes
            self._drop_oldest(key)
        future.set_result(column)
        return column

    def _drop_oldest(self, newest: tuple[int, int, str]) -> None:
        total = sum(self._kept.values())
        for key in [key for key in self._columns if key in self._kept and key != newest]:
            if total <= self._cache_bytes:
                return
            total -= self._kept.pop(key)
            del self._columns[key]

    def read(self, file: int, group: int, name: str) -> pyarrow.ChunkedArray:
        """A column of a row group, read anew. Raises DataError."""
        import pyarrow.parquet

        metadata = self.metadata(file)
        opened = _Opened(self._ranges, self.files[file], self._states[file])
        try:
            parquet = pyarrow.parquet.ParquetFile(opened, metadata=metadata, pre_buffer=True)
            table = parquet.read_row_group(group, columns=[name], use_threads=False)
            column = table.column(name if name in table.column_names else name.split(".")[0])
        except DataError:
            raise
        except Exception as error:  # damaged pages raise many types
            raise DataError(
                f"{self.files[file]}: row group {group}, column {name!r} cannot be read "
                f"({_line(error)})"
            ) from None
        if len(column) != metadata.row_group(group).num_rows:
            raise DataError(
                f"{self.files[file]}: row group {group} has {len(column)} rows of "
                f"{metadata.row_group(group).num_rows}"
            )
        return column


class _Opened(io.RawIOBase):
    """A file as pyarrow reads one; all that is read comes from `RangeFiles`."""

    def __init__(self, ranges: RangeFiles, file: str, state: FileState):
        self._ranges = ranges
        self._file = file
        self._state = state
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state.size}[whence]
        )
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._state.size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        [data] = self._ranges.read(self._file, self._state, [(self._at, size)]) if size else [b""]
        self._at += size
        return data


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
