"""Records that are in memory already."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxvl.data.sources.base import ABSENT, Column, Record, Source
from jaxvl.data.sources.table import column_array


class InMemory(Source):
    """A list of records.

    Args:
      name, fingerprint, columns: see `base.Source`. The fingerprint is empty where nothing is
        cached by it.
      records: in order.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Column],
        records: Sequence[Record],
        fingerprint: str = "",
    ):
        self.name = name
        self.columns = dict(columns)
        self.fingerprint = fingerprint
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        record = self._records[i]
        return {name: value for name, value in record.items() if columns is None or name in columns}

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        column = self.columns.get(name)
        if column is None or column.kind not in ABSENT:
            return None
        return column_array([record.get(name) for record in self._records], column.kind)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name not in self.columns:
            return None
        return np.array([record.get(name) is not None for record in self._records], bool)
