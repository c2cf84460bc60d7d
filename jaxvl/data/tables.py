"""Tables: columns over the records of a source, computed by jobs and saved.

    WORKDIR/tables/NAME/STEP/table.json     what it is. It is written last: a folder without it is
                                            no table
                             COLUMN.npy     [n, …], memory-mapped by whoever reads it
                             present.npy    bool [n], which records have values; only where some
                                            lack them

STEP is the step whose weights the job had. A task names the tables that it reads, and their columns
are then columns of its source, for samplers and fields alike:

    data = dict(source=…, tables=dict(clusters="runs/one/tables/clusters"),
                sampler=dict(name="per_cluster", table="clusters"))

A table of one column has that column under its own name, `clusters`; one of several has
`NAME/COLUMN` for each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterable, Mapping

import jax
import numpy as np

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import ConfigError, check, to_path
from jaxvl.data.sources.base import Column, Kind, Record, Source

Columns = Mapping[str, np.ndarray | Iterable[np.ndarray]]
ABOUT = "table.json"
PRESENT = "present"  # column of a job's result: bool [n], which records have values


@dataclasses.dataclass(frozen=True)
class ColumnShape:
    """A saved column.

    Attributes:
      shape: [n, …].
      dtype: of numpy.
      numbers: whether its values are numbers of records of the source.
    """

    shape: tuple[int, ...]
    dtype: str
    numbers: bool = False


@dataclasses.dataclass(frozen=True)
class SavedTable:
    """A table in a folder. Its arrays are opened when they are asked for; it can be pickled.

    Attributes:
      folder: of this step's version.
      source: fingerprint of the source whose records its rows are.
      made_from: what it was made from: the job's config, the weights, the source, other tables.
      step: of the weights.
      content: hash of all columns.
      columns: name -> shape and dtype.
      partial: whether some records have no values.
    """

    folder: paths.Path
    source: str
    made_from: Mapping[str, Json]
    step: int
    content: str
    columns: Mapping[str, ColumnShape]
    partial: bool

    def array(self, column: str) -> np.ndarray:
        """[n, …], memory-mapped where the folder is local. Raises ConfigError where the file is
        gone."""
        path = self.folder / f"{column}.npy"
        try:
            if paths.is_remote(path):
                return np.load(io.BytesIO(paths.read_bytes(path)), allow_pickle=False)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError("tables", f"{str(path)!r} cannot be read: {error}") from None


# --------------------------------------------------------------------------------------------------
# Writing


def write_table(
    folder: paths.Path,
    columns: Columns,
    *,
    records: int,
    source: str,
    made_from: Mapping[str, Json],
    step: int,
    numbers: Collection[str] = (),
) -> None:
    """Writes a table. Every process calls it, with the same blocks; the first one writes.

    A kill leaves no table, or the whole one: `table.json` comes last.

    Args:
      columns: name -> array [n, …], or its blocks of rows in order. The columns are asked for one
        block each in turn, so that columns which are made together need no more memory than a
        block. `PRESENT` is taken last.
      records: n.
      numbers: columns whose values are numbers of records.

    Raises:
      ValueError: a column has more or fewer than n rows.
    """
    first = jax.process_index() == 0
    if first:
        paths.make_folder(folder)
        (folder / ABOUT).unlink(missing_ok=True)
    shapes = {}
    content = hashlib.sha256()
    with tempfile.TemporaryDirectory() as temporary:
        where = (folder, pathlib.Path(temporary)) if first else None
        writers = [
            _ColumnWriter(name, values, records, where)
            for name, values in columns.items()
            if name != PRESENT
        ]
        left = list(writers)
        while left:
            left = [writer for writer in left if writer.take()]
        present = columns.get(PRESENT)
        partial = present is not None and not np.asarray(present).all()
        if partial:
            last = _ColumnWriter(PRESENT, np.asarray(present, bool), records, where)
            while last.take():
                pass
            writers.append(last)
        for writer in writers:
            written = writer.close()
            content.update(writer.digest)
            if writer.name != PRESENT:
                shapes[writer.name] = dataclasses.replace(written, numbers=writer.name in numbers)
    about = {
        "source": source,
        "made_from": made_from,
        "step": step,
        "content": content.hexdigest(),
        "columns": {name: dataclasses.asdict(shape) for name, shape in shapes.items()},
        "partial": partial,
    }
    if first:
        paths.write_text(folder / ABOUT, json.dumps(about, indent=1))


class _ColumnWriter:
    """Writes a column block by block, and hashes it.

    Args:
      where: folder of the table, and a local one for what is uploaded; None: nothing is written.
    """

    def __init__(
        self,
        name: str,
        values: np.ndarray | Iterable[np.ndarray],
        records: int,
        where: tuple[paths.Path, pathlib.Path] | None,
    ):
        self.name = name
        self._blocks = iter([values] if isinstance(values, np.ndarray) else values)
        self._records = records
        self._where = where
        self._row = 0
        self._shape: ColumnShape | None = None  # known from the first block on
        self._out: np.memmap | None = None
        self._hash = hashlib.sha256()

    def take(self) -> bool:
        """Writes the next block; False where there is none. Raises ValueError where it does not
        fit."""
        block = next(self._blocks, None)
        if block is None:
            return False
        block = np.asarray(block)
        if self._shape is None:
            self._begin(block)
        shape = self._shape.shape
        dtype = np.dtype(self._shape.dtype)
        end = self._row + len(block)
        if end > self._records or block.shape[1:] != shape[1:] or block.dtype != dtype:
            given = f"{block.dtype} {block.shape}"
            at = self._row
            raise ValueError(f"{self.name}: a block {given} does not fit {dtype} {shape} at {at}")
        self._hash.update(np.ascontiguousarray(block).data)
        if self._out is not None:
            self._out[self._row : end] = block
        self._row = end
        return True

    def close(self) -> ColumnShape:
        """Puts the column in its place. Raises ValueError where rows are missing."""
        if self._row != self._records:
            raise ValueError(f"{self.name}: has {self._row} rows; must be {self._records}")
        if self._out is not None:
            self._out.flush()
            folder, _ = self._where
            if paths.is_remote(folder):
                paths.upload(self._part, folder / f"{self.name}.npy")
            else:
                os.replace(self._part, folder / f"{self.name}.npy")
        return self._shape

    @property
    def digest(self) -> bytes:
        """Of name, shape, dtype and values."""
        return self._hash.digest()

    @property
    def _part(self) -> pathlib.Path:
        folder, temporary = self._where
        return pathlib.Path(temporary if paths.is_remote(folder) else folder) / (
            f"{self.name}.npy.part"
        )

    def _begin(self, block: np.ndarray) -> None:
        shape = (self._records, *block.shape[1:])
        self._shape = ColumnShape(shape, block.dtype.str)
        self._hash.update(f"{self.name} {shape} {block.dtype.str} ".encode())
        if self._where is not None:
            self._out = np.lib.format.open_memmap(self._part, "w+", block.dtype, shape)


def remove_older(folder: paths.Path, step: int) -> None:
    """Removes the versions of a table that were made before `step`. One process calls it."""
    for made in versions(folder):
        if made < step:
            version = folder / str(made)
            (version / ABOUT).unlink(missing_ok=True)
            for file in paths.list_folder(version):
                file.unlink(missing_ok=True)
            if not paths.is_remote(version):
                version.rmdir()


# --------------------------------------------------------------------------------------------------
# Reading


def versions(folder: paths.Path) -> list[int]:
    """Steps of the versions that are whole, oldest first."""
    found = [path for path in paths.list_folder(folder) if path.name.isdigit()]
    return sorted(int(path.name) for path in found if paths.is_file(path / ABOUT))


def read_table(folder: paths.Path, step: int | None = None) -> SavedTable | None:
    """The newest version of a table, or the newest until `step`; None where there is none.

    Raises ConfigError where what is there is no table.
    """
    made = [n for n in versions(folder) if step is None or n <= step]
    if not made:
        return None
    path = folder / str(made[-1]) / ABOUT
    try:
        about = json.loads(paths.read_text(path))
        shapes = {
            name: ColumnShape(tuple(column["shape"]), column["dtype"], column["numbers"])
            for name, column in about["columns"].items()
        }
        return SavedTable(path.parent, **{**about, "columns": shapes})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("tables", f"{str(path)!r} describes no table: {error}") from None


def named_table(where: str, key: str) -> SavedTable:
    """The table in the folder `where`. Raises ConfigError at `key` where there is none."""
    table = read_table(to_path(where, key))
    known = [path.name for path in paths.list_folder(to_path(where, key).parent)]
    hint = f" (tables beside it: {', '.join(known)})" if known else ""
    check(
        table is not None,
        key,
        f"{where!r} holds no table; must be RUN/tables/NAME of a job that is done{hint}",
    )
    return table


class Tabled(Source):
    """A source whose records also have the columns of tables.

    Args:
      source: of the records.
      tables: name -> table.
      identities: name -> what tells a table from another one in the fingerprint; None: its content.

    Raises:
      ConfigError: under `tables`, for a table of another source, or a column that is there already.
    """

    def __init__(
        self,
        source: Source,
        tables: Mapping[str, SavedTable],
        identities: Mapping[str, str] | None = None,
    ):
        self.source = source
        self.name = source.name
        self.parts = source.parts
        self.columns: dict[str, Column] = dict(source.columns)
        self._places: dict[str, tuple[SavedTable, str]] = {}  # column -> table, column of that
        for name, table in tables.items():
            self._add(name, table)
        known = identities or {}
        parts = [f"{name}:{known.get(name, table.content)}" for name, table in tables.items()]
        self.fingerprint = (
            f"{source.fingerprint}+{','.join(parts)}" if parts else source.fingerprint
        )
        self._forget()

    def _add(self, name: str, table: SavedTable) -> None:
        key = f"tables.{name}"
        folder = str(table.folder.parent)
        whole = self.source
        while isinstance(whole, Tabled):
            whole = whole.source
        check(
            table.source == whole.fingerprint,
            key,
            f"{folder!r} is of the records of another source than {self.name} (fingerprints "
            f"{brief(table.source)} and {brief(whole.fingerprint)}); must be a table that a job "
            f"made of this source",
        )
        for column, shape in table.columns.items():
            own = name if len(table.columns) == 1 else f"{name}/{column}"
            check(
                own not in self.columns,
                key,
                f"gives the column {own!r}, which {self.name} has; name the table otherwise",
            )
            self.columns[own] = Column(
                kind_of(shape), optional=table.partial, numbers=shape.numbers
            )
            self._places[own] = table, column

    def _forget(self) -> None:
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the arrays: a worker process maps them anew."""
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._forget()

    def _array(self, table: SavedTable, column: str) -> np.ndarray:
        key = str(table.folder), column
        if key not in self._arrays:
            self._arrays[key] = table.array(column)
        return self._arrays[key]

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`. The source itself is read for columns of its own only."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        mine = [name for name in self._places if columns is None or name in columns]
        theirs = columns and [name for name in columns if name not in self._places]
        record = dict(self.source.read(i, theirs)) if columns is None or theirs else {}
        for name in mine:
            table, column = self._places[name]
            if not table.partial or self._array(table, PRESENT)[i]:
                value = self._array(table, column)[i]
                record[name] = value.item() if np.ndim(value) == 0 else np.array(value)
        return record

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`; of a table all columns are cheap, and memory-mapped."""
        if name not in self._places:
            return self.source.column(name)
        return self._array(*self._places[name])

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name not in self._places:
            return self.source.present(name)
        table, _ = self._places[name]
        return self._array(table, PRESENT) if table.partial else np.ones(len(self), bool)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self.source.shards()

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`."""
        return self.source.left_out()


def kind_of(shape: ColumnShape) -> Kind:
    """What a source's column of such values is."""
    if len(shape.shape) > 1:
        return "array"
    return "float" if np.dtype(shape.dtype).kind == "f" else "int"


def brief(fingerprint: str) -> str:
    """The beginning of a fingerprint, for messages."""
    return fingerprint[:12] or "none"
