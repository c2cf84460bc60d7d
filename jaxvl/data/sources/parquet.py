"""Parquet files: pictures and texts in their columns, a row group read at a time.

Format: https://parquet.apache.org/docs/file-format/.

    source = dict(name="parquet", files="s3://bucket/laion/{00000..00127}.parquet",
    columns=dict(image="jpg", text="TEXT"))

A row cannot be read without the rest of its row group, so a file wants small ones:
`row_group_size=1000` where it is written. Row groups that were read stay in memory up to `cache`
MiB, column by column: a text is read without the pictures.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from jaxvl.config import PathText, Range, check
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.arrow_columns import (
    find_columns,
    first_content,
    import_pyarrow,
    path_of,
    plain_values,
    value_at,
)
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.file_patterns import expand_files
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.parquet_files import (
    Footer,
    ParquetFiles,
    pack_footers,
    read_footer,
    unpack_footers,
)
from jaxvl.data.sources.places import Places, name_of
from jaxvl.data.sources.remembered import key_of, remembered, states_of
from jaxvl.data.sources.table import Chosen, Found, TableSource, choose_columns, column_array
from jaxvl.data.sources.values import nested

READ_AT_ONCE = 16  # footers
# Arrow types as texts -> what they have in common: writers differ in widths, and in the names of
# what is in lists.
_ALIKE = (
    (re.compile(r"dictionary<values=(\w+), indices=\w+, ordered=\d>"), r"\1"),
    (re.compile(r"\bu?int\d+\b"), "int"),
    (re.compile(r"\b(halffloat|double)\b"), "float"),
    (re.compile(r"\blarge_|_view\b| not null\b"), ""),
    (re.compile(r"<element: "), "<item: "),
)
LARGE_GROUP = 2**30  # bytes of a row group that should have been written in smaller ones
LARGE_COLUMN = 2**28  # bytes of a text column up to which `column` reads it whole


@SOURCES.register("parquet")
@dataclasses.dataclass(frozen=True)
class Parquet:
    """See the module's text.

    Attributes:
      files: names with braces, globs or folders, local or remote; `::` joins several.
      columns: our name -> theirs, `name.part` for a part of a struct; empty: pictures, sounds,
        texts and labels by the names that teams give them, all others by their own.
      kinds: our name -> kind, where the type does not tell it.
      images: folder of the files that a column of paths names.
      cache: MiB of row groups that stay in memory.
    """

    files: PathText | tuple[PathText, ...]
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    images: PathText | None = None
    cache: Annotated[int, Range(1, 1_048_576)] = 512

    def open(self, log: Log = print) -> ParquetSource:
        """Raises ConfigError at one of its fields; DataError for a file that is cut short, or
        differs from the first one."""
        import_pyarrow("parquet")
        files = expand_files(self.files, "files", ".parquet")
        states = states_of(files)
        key = key_of("parquet", files, states)

        def find() -> list[Any]:
            with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
                return pack_footers(list(pool.map(read_footer, files, states)))

        footers = unpack_footers(remembered("parquet", key, find, log))
        reader = ParquetFiles(files, states, self.cache * 2**20)
        rows = [row for row, footer in enumerate(footers) if sum(footer.groups)]
        check(
            len(rows) > 0,
            "files",
            f"{files[0]!r}{' and all others' if len(files) > 1 else ''} has no rows",
        )
        schema = reader.metadata(rows[0]).schema.to_arrow_schema()
        found = find_columns(
            schema, functools.partial(_first_bytes, reader, footers[rows[0]], rows[0])
        )
        nulls = _all_nulls([footers[row] for row in rows])
        found = {
            name: dataclasses.replace(column, optional=_may_lack(nulls, name, column))
            for name, column in found.items()
        }
        chosen = choose_columns(
            found, self.columns, self.kinds, self.images is not None, files[rows[0]], log
        )
        _check_schemas(files, footers, rows, chosen)
        _warn_of_large_groups(files, footers, chosen, log)
        media = MediaFolder(self.images) if self.images is not None else None
        return ParquetSource(reader, footers, chosen, media)


def _first_bytes(reader: ParquetFiles, footer: Footer, file: int, name: str) -> bytes | None:
    """The content of the first record of a file that has one."""
    for group, rows in enumerate(footer.groups):
        column = reader.column(file, group, name)
        for i in range(rows):
            path = path_of(name, footer.types)
            value = first_content(nested(column[i].as_py(), path[1:]))
            if value:
                return value
        if group == 0 and rows > 1000:
            return None
    return None


def _all_nulls(footers: Sequence[Footer]) -> dict[str, int]:
    """Leaf column -> 0 where all files say that every record has one."""
    files: collections.Counter[str] = collections.Counter()
    nulls: dict[str, int] = {}
    for footer in footers:
        files.update(footer.nulls.keys())
        nulls |= {leaf: -1 for leaf, count in footer.nulls.items() if count != 0}
    return {leaf: nulls.get(leaf, 0) if n == len(footers) else -1 for leaf, n in files.items()}


def _may_lack(nulls: Mapping[str, int], name: str, column: Found) -> bool:
    """Whether some record has no value."""
    if column.kind in ("image", "audio"):  # a struct's `path` may well be null
        return nulls.get(f"{name}.bytes", nulls.get(name, -1)) != 0
    counts = [count for leaf, count in nulls.items() if leaf == name or leaf.startswith(f"{name}.")]
    return not counts or any(count != 0 for count in counts)


def _check_schemas(
    files: Sequence[str],
    footers: Sequence[Footer],
    rows: Sequence[int],
    chosen: Mapping[str, Chosen],
) -> None:
    """Raises DataError where a column that is read is missing in a file, or of another type."""
    first = footers[rows[0]].types
    for row in rows[1:]:
        if footers[row].types is first or footers[row].types == first:
            continue
        for column in chosen.values():
            name = path_of(column.theirs, first)[0]
            there = footers[row].types.get(name)
            if there is None:
                raise DataError(
                    f"{files[row]}: has no column {name!r}, which {files[rows[0]]} has "
                    f"(columns: {', '.join(footers[row].types)})"
                )
            if _read_alike(there) != _read_alike(first[name]) and "null" not in (
                there,
                first[name],
            ):
                raise DataError(
                    f"{files[row]}: column {name!r} is of type {there}, but {first[name]} in "
                    f"{files[rows[0]]}; write them alike"
                )


@functools.cache
def _read_alike(of: str) -> str:
    """An Arrow type; equal for types whose values are read alike."""
    for pattern, common in _ALIKE:
        of = pattern.sub(common, of)
    return of


def _warn_of_large_groups(
    files: Sequence[str], footers: Sequence[Footer], chosen: Mapping[str, Chosen], log: Log
) -> None:
    read = {column.theirs for column in chosen.values()}
    large = [
        (file, footer)
        for file, footer in zip(files, footers)
        if sum(most for most, _ in footer.sizes.values()) > LARGE_GROUP
    ]
    for file, footer in large:
        size = footer.largest_group(read) / 2**20
        if size * 2**20 > LARGE_GROUP:
            log(
                f"{file}: a row group has {size:,.0f} MiB, which are read for any row of it; "
                f"write it with row_group_size=1000 or less"
            )
            return


class ParquetSource(TableSource):
    """Rows of Parquet files, one file after the other. A shard is a row group.

    Args:
      reader: of the files.
      footers: of each file.
      chosen, media: see `TableSource`.
    """

    def __init__(
        self,
        reader: ParquetFiles,
        footers: Sequence[Footer],
        chosen: Mapping[str, Chosen],
        media: MediaFolder | None,
    ):
        digest = hashlib.sha256("".join(footer.digest for footer in footers).encode())
        super().__init__(name_of(reader.files), digest.hexdigest(), chosen, media)
        self._reader = reader
        self._footers = list(footers)
        self._tops = {name for footer in footers for name in footer.types}
        self._places = Places([rows for footer in footers for rows in footer.groups if rows])
        self._groups = [
            (file, group)
            for file, footer in enumerate(footers)
            for group, rows in enumerate(footer.groups)
            if rows
        ]

    def __len__(self) -> int:
        return len(self._places)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._places.sizes

    def _place(self, i: int) -> tuple[int, int, int]:
        """(file, row group, row of the group) of a record."""
        shard, row = self._places[i]
        file, group = self._groups[shard]
        return file, group, row

    def where(self, i: int) -> str:
        """See `TableSource`."""
        file, group, row = self._place(i)
        return f"{self._reader.files[file]}, row group {group}, row {row}"

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        file, group, row = self._place(i)
        where = self.where(i)
        found = {}
        for name in theirs:
            value = value_at(self._reader.column(file, group, name), row, where)
            path = path_of(name, self._tops)
            found[name] = nested(value, path[1:])
        return found

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name not in self.columns or self.columns[name].kind not in (
            "class",
            "int",
            "float",
            "text",
        ):
            return None
        theirs = self.chosen[name].theirs
        kind = self.columns[name].kind
        if kind == "text" and sum(footer.size(theirs) for footer in self._footers) > LARGE_COLUMN:
            return None
        return column_array(self._all_values(name), kind)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        known = super().present(name)
        if (
            known is not None
            or name not in self.columns
            or self.columns[name].kind not in ("class", "int", "float")
        ):
            return known
        return np.array([value is not None for value in self._all_values(name)], bool)

    def _all_values(self, name: str) -> list[object | None]:
        theirs = self.chosen[name].theirs
        kind = self.columns[name].kind
        path = path_of(theirs, self._tops)

        def of_group(place: tuple[int, int]) -> list[object | None]:
            return plain_values(self._reader.read(*place, theirs), path, kind)

        with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
            return [value for values in pool.map(of_group, self._groups) for value in values]
