"""Tables that samplers read: one row for every record of a source."""

from __future__ import annotations

import io

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError, check, nearest, to_path
from jaxvl.data.sources.base import Source

SUFFIX = ".npy"


class Table:
    """Integers by record: a `.npy` file, memory-mapped where it is local, or a cheap column of the
    source.

    Attributes:
      values: int [n] or [n, N].

    Args:
      table: path of a file, or name of a column.
      axes: of the array: 1 or 2.
      key: the config's field, for messages.

    Raises:
      ConfigError: there is no such file or column, or it is of another type or shape.
    """

    def __init__(self, source: Source, table: str, axes: int, key: str = "table"):
        self._file = table if table.endswith(SUFFIX) else None
        self.values = _load(table, key) if self._file else _column(source, table, key)
        shape = self.values.shape
        wanted = "[n]" if axes == 1 else "[n, N]"
        check(
            np.issubdtype(self.values.dtype, np.integer),
            key,
            f"{table!r} is of type {self.values.dtype}; must be integers",
        )
        check(len(shape) == axes, key, f"{table!r} has the shape {list(shape)}; must be {wanted}")
        check(
            shape[0] == len(source),
            key,
            f"{table!r} has {shape[0]:,} rows; must be {len(source):,}, one for each record",
        )

    def __getstate__(self) -> dict[str, object]:
        """Without the values of a file: a worker process maps it anew."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "values" or self._file is None
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        if self._file is not None:
            self.values = _load(self._file, "table")


def _load(file: str, key: str) -> np.ndarray:
    path = to_path(file, key)
    check(
        paths.is_file(path),
        key,
        f"{file!r} is not there; must be a {SUFFIX} file or a column of the source",
    )
    try:
        if paths.is_remote(path):
            return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(key, f"{file!r} is no {SUFFIX} file of numbers: {error}") from None


def _column(source: Source, name: str, key: str) -> np.ndarray:
    known = list(source.columns)
    hint = f"{nearest(name, known)} (columns: {', '.join(known)})"
    check(
        name in known, key, f"{name!r} is neither a {SUFFIX} file nor a column of the source{hint}"
    )
    values = source.column(name)
    check(
        values is not None,
        key,
        f"column {name!r} can only be read record by record; must be a cheap column or a "
        f"{SUFFIX} file",
    )
    return np.asarray(values)
