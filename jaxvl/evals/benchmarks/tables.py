"""Pictures in Parquet and Arrow tables, as Hugging Face writes them."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import threading
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.aliases import ColumnValue
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Record, Source
from jaxvl.evals.benchmarks.files import Values, as_objects

SUFFIXES = (".parquet", ".arrow")


def arrow() -> types.ModuleType:
    """The module pyarrow. Raises DataError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "Parquet and Arrow tables need pyarrow, which is not installed: pip install "
            "'jaxvl[parquet]'"
        ) from None
    return pyarrow


class Place(NamedTuple):
    """Where a picture is: a row of all files together, a column, and which of a list (None: the
    column holds one)."""

    row: int
    column: str
    item: int | None = None


class Tables:
    """Tables of one schema, one after the other.

    Args:
      files: Parquet files, or Arrow files of either kind (streams, as `datasets` caches them).

    Raises DataError where a file cannot be read or has another schema than the first.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = [pathlib.Path(file) for file in files]
        self._lock = threading.Lock()
        self._tables: dict[int, Any] = {}
        schemas = [_guarded(_schema, file) for file in self.files]
        self.names = list(schemas[0].names)
        self.schema = schemas[0]
        for file, schema in zip(self.files, schemas):
            if schema.names != self.names:
                raise DataError(f"{file}: has other columns than {self.files[0].name}")
        self._parts = [_guarded(_rows, file) for file in self.files]
        self._starts = np.concatenate(
            [[0], np.cumsum([rows for parts in self._parts for rows in parts])]
        )
        self._places = [(f, g) for f, parts in enumerate(self._parts) for g in range(len(parts))]

    def __getstate__(self) -> dict[str, object]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_lock", "_tables")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._tables = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def values(self, name: str) -> list[ColumnValue]:
        """All values of a column, as Python has them."""
        if name not in self.names:
            raise DataError(
                f"{self.files[0]}: has no column {name!r} (columns: {', '.join(self.names)})"
            )
        return [
            value
            for number in range(len(self._places))
            for value in self._part(number, (name,)).column(name).to_pylist()
        ]

    def value(self, row: int, name: str) -> ColumnValue:
        """One value of a column whose values may be large; the last row groups that were read are
        kept."""
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        with self._lock:
            if number not in self._tables:
                while len(self._tables) >= 2:
                    self._tables.pop(next(iter(self._tables)))
                self._tables[number] = self._part(number, None)
            table = self._tables[number]
        return table.column(name)[row - int(self._starts[number])].as_py()

    def _part(self, number: int, columns: tuple[str, ...] | None) -> Any:
        file, part = self._places[number]
        return _guarded(lambda path: _read(path, part, columns), self.files[file])


def _guarded(read: Any, path: pathlib.Path) -> Any:
    pa = arrow()
    try:
        return read(path)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as {path.suffix[1:]} "
            f"({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None


def _schema(path: pathlib.Path) -> Any:
    return arrow().parquet.read_schema(path) if path.suffix == ".parquet" else _stream(path).schema


def _rows(path: pathlib.Path) -> list[int]:
    """Rows of each part that is read at a time: a row group; an Arrow file, which is memory-mapped,
    is one."""
    if path.suffix == ".parquet":
        metadata = arrow().parquet.read_metadata(path)
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return [_stream(path).read_all().num_rows]


def _read(path: pathlib.Path, part: int, columns: tuple[str, ...] | None) -> Any:
    if path.suffix == ".parquet":
        with arrow().parquet.ParquetFile(path) as file:
            return file.read_row_group(part, columns=None if columns is None else list(columns))
    return _stream(path).read_all()


def _stream(path: pathlib.Path) -> Any:
    pa = arrow()
    mapped = pa.memory_map(str(path), "r")
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped)


class TableImages(Source):
    """One record for each picture of tables.

    Args:
      name: for messages.
      tables: where they are.
      places: of each record's picture.
      values: further columns.
    """

    def __init__(
        self,
        name: str,
        tables: Tables,
        places: Sequence[Place],
        values: Mapping[str, Values] | None = None,
    ):
        self.name = name
        self._tables = tables
        self._places = list(places)
        self._values = dict(values or {})
        self.columns = {
            "image": Column("image"),
            **{key: held.column for key, held in self._values.items()},
        }

    def __len__(self) -> int:
        return len(self._places)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of names and sizes of the files, and of the columns in memory."""
        digest = hashlib.sha256()
        for file in self._tables.files:
            digest.update(f"{file.name}\0{file.stat().st_size}\n".encode())
        for key, held in self._values.items():
            digest.update(f"{key}\0{list(held.values)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = self.columns if columns is None else columns
        record = {
            key: held.values[i]
            for key, held in self._values.items()
            if key in wanted and held.values[i] is not None
        }
        if "image" in wanted:
            record["image"] = self._picture(self._places[i])
        return record

    def _picture(self, place: Place) -> bytes:
        value = self._tables.value(place.row, place.column)
        if place.item is not None:
            value = value[place.item] if value is not None and place.item < len(value) else None
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise BadRecord(
                "record is incomplete",
                f"{self.name}: row {place.row} has no bytes of a picture in {place.column!r}",
            )
        return value

    def column(self, name: str) -> np.ndarray | None:
        held = self._values.get(name)
        return None if held is None else as_objects(list(held.values))
