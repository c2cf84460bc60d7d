"""Metadata of a folder of pictures, as Hugging Face's imagefolder has it.

Further columns by file name.
A row's `file_name` starts from the folder of its file. `./a.jpg` and `sub\\a.jpg` mean `a.jpg` and
`sub/a.jpg`. Of several rows of one picture the last counts.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import io
import json
import posixpath
from collections.abc import Collection, Iterator, Mapping

from jaxvl import paths
from jaxvl.config import check
from jaxvl.data import text_files
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Log
from jaxvl.data.sources.delimited import kind_of_texts
from jaxvl.data.sources.table import Chosen, Found, choose_columns
from jaxvl.data.sources.values import as_value, common_kind, is_missing, kind_of, named

FILES = ("metadata.jsonl", "metadata.csv")
NO_FILE = "row of a file that is not there"
FURTHER_ROW = "further row of one picture"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Rows by picture.

    Attributes:
      path: the folder.
      rows: picture -> its row, for pictures that are there.
      chosen: our name -> column of the rows.
      left_out: cause -> rows that are of no record.
    """

    path: str
    rows: Mapping[str, Mapping[str, object]]
    chosen: Mapping[str, Chosen]
    left_out: collections.Counter[str]

    @functools.cached_property
    def columns(self) -> dict[str, Column]:
        """Our name -> type."""
        return {name: each.column for name, each in self.chosen.items()}

    def value(self, picture: str, name: str) -> object | None:
        """None where the picture's row has none. Raises BadRecord."""
        row = self.rows[picture]
        chosen = self.chosen[name]
        value = named(row, chosen.theirs)
        kind = chosen.column.kind
        if is_missing(value, kind):
            return None
        return as_value(value, kind, f"{self.path}, {picture}, {name}", chosen.column.classes)

    def cheap_value(self, picture: str, name: str) -> object | None:
        """As `value`, but None as well where that raises BadRecord: `value` says why."""
        try:
            return self.value(picture, name)
        except BadRecord:
            return None


def read_metadata(
    path: str,
    pictures: Collection[str],
    files: Collection[str],
    columns: Mapping[str, str],
    kinds: Mapping[str, str],
    log: Log,
) -> Metadata | None:
    """The metadata files in the folder or below; None where there are none.

    Args:
      path: the folder.
      pictures: their names from the folder.
      files: all files.
      columns, kinds: as configured.

    Raises:
      ConfigError: at `columns` or `kinds`.
      DataError: a file cannot be read, or none of its pictures is there.
    """
    there = set(pictures)
    rows: dict[str, Mapping[str, object]] = {}
    left_out: collections.Counter[str] = collections.Counter()
    first = None
    for name, of, row in _all_rows(path, files):
        picture = posixpath.normpath(posixpath.join(posixpath.dirname(name), of.replace("\\", "/")))
        first = picture if first is None else first
        if picture not in there:
            left_out[NO_FILE] += 1
            continue
        if picture in rows:
            left_out[FURTHER_ROW] += 1
        rows[picture] = row
    check(
        first is not None or not columns,
        "columns",
        f"{path!r} has no {' or '.join(FILES)} that would have columns",
    )
    if first is None:
        return None
    if not rows:
        raise DataError(
            f"{path}: none of the {left_out[NO_FILE]:,} files that its metadata names is "
            f"there, as {first!r}"
        )
    found = _find_columns(rows)
    found.pop("file_name", None)
    chosen = (
        choose_columns(found, columns, kinds, False, f"{path}'s metadata", log)
        if found or columns
        else {}
    )
    return Metadata(path, rows, chosen, left_out)


def _all_rows(path: str, files: Collection[str]) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """(metadata file, file name, row). Raises DataError."""
    for name in sorted(files):
        if posixpath.basename(name) not in FILES:
            continue
        file = f"{path.rstrip('/')}/{name}"
        for number, row in enumerate(_rows(paths.read_bytes(paths.as_path(file)), file), 1):
            of = row.get("file_name")
            if not isinstance(of, str) or not of:
                raise DataError(
                    f"{file}: row {number} has no 'file_name' (it has: {', '.join(map(str, row))})"
                )
            yield name, of, row


def _rows(content: bytes, file: str) -> Iterator[Mapping[str, object]]:
    try:
        if file.endswith(".csv"):
            yield from _typed(
                list(csv.DictReader(io.StringIO(text_files.decode(content), newline="")))
            )
            return
        for number, line in enumerate(text_files.read_lines(content), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{file}:{number}: is no JSON object")
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 ({error})") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _typed(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Rows of a CSV file with numbers where all values of a column are such; an empty number is
    None."""
    typed: list[dict[str, object]] = [dict(row) for row in rows]
    for name in rows[0] if rows else ():
        kind = kind_of_texts(name, [row[name] for row in rows if row[name]])
        if kind in ("int", "float"):
            for row in typed:
                row[name] = as_value(row[name], kind, name) if row[name] else None
    return typed


def _find_columns(rows: Mapping[str, Mapping[str, object]]) -> dict[str, Found]:
    values: dict[str, list[object]] = {}
    for row in rows.values():
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    found = {}
    for name, of in values.items():
        kind = common_kind(kind_of(value) for value in of)
        found[name] = Found(kind, str(kind), len(of) < len(rows))
    return found
