"""Some records of a source, by a column.

    source = dict(name="where", source=dict(name="parquet", files="…"), column="split",
    among=("train",)) source = dict(name="where", source=…, column="similarity", low=0.3) source =
    dict(name="where", source=…, column="uid", subset="datacomp_subset.npy")

A subset file is DataComp's: a `.npy` array of dtype `u8,u8`, the first and the last 16 hexadecimal
digits of each uid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from typing import Annotated, Any

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError, NonEmpty, PathText, check, nearest, to_path
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log, Source
from jaxvl.data.sources.pairs import PAIR, find_pairs, is_sorted, pairs_of_hex, values_of
from jaxvl.data.sources.remembered import remembered_arrays
from jaxvl.data.sources.selected import Selected

KINDS = ("text", "class", "int", "float")


@SOURCES.register("where")
@dataclasses.dataclass(frozen=True)
class Where:
    """See the module's text. A record without the column is left out.

    Attributes:
      source: by name, with its options.
      column: what decides.
      among: values that are kept; of a class column numbers or names.
      low, high: bounds of numbers that are kept, both included.
      subset: file of the uids that are kept.
    """

    source: Annotated[Any, SOURCES]
    column: Annotated[str, NonEmpty("the name of a column")]
    among: tuple[str | float, ...] = ()
    low: float | None = None
    high: float | None = None
    subset: PathText | None = None

    def __post_init__(self):
        ways = [
            bool(self.among),
            self.low is not None or self.high is not None,
            self.subset is not None,
        ]
        check(
            sum(ways) == 1,
            "column",
            f"{self.column!r}: must be compared by one of among, low and high, or subset",
        )
        if self.low is not None and self.high is not None:
            check(
                self.low <= self.high, "low", f"{self.low!r} must not be above high, {self.high!r}"
            )
        if self.subset is not None:
            check(
                paths.is_file(to_path(self.subset, "subset")), "subset", f"no file {self.subset!r}"
            )

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its fields; DataError where no record is kept."""
        try:
            source = self.source.open(log)
        except ConfigError as error:
            raise error.under("source") from None
        check(self.column in source.columns, "column", _unknown(self.column, source))
        kind = source.columns[self.column].kind
        check(
            kind in KINDS,
            "column",
            f"{self.column!r} is of kind {kind}; must be one of {', '.join(KINDS)}",
        )
        subset = _read_subset(self.subset) if self.subset is not None else None
        why = self._describe(subset)
        key = hashlib.sha256(f"{source.fingerprint}/{why}".encode()).hexdigest()[:32]

        def find() -> tuple[np.ndarray, dict[str, Any]]:
            return np.flatnonzero(self._kept(source, subset)), {}

        index, _ = remembered_arrays("where", key, find, log)
        if len(index) == 0:
            raise DataError(f"{source.name}: no record has {why}")
        log(f"{source.name}: {len(index):,} of {len(source):,} records have {why}")
        return Selected(source, index, why)

    def _describe(self, subset: np.ndarray | None) -> str:
        """The condition, for messages and the fingerprint."""
        if subset is not None:
            return (
                f"{self.column} in a subset of {len(subset):,} "
                f"({hashlib.sha256(subset.tobytes()).hexdigest()[:16]})"
            )
        if self.among:
            return f"{self.column} among {json.dumps(self.among, ensure_ascii=False)}"
        low = "" if self.low is None else f" >= {self.low!r}"
        high = "" if self.high is None else f" <= {self.high!r}"
        return f"{self.column}{low}{' and' if low and high else ''}{high}"

    def _kept(self, source: Source, subset: np.ndarray | None) -> np.ndarray:
        """bool [n]."""
        values = values_of(source, self.column)
        if subset is not None:
            pairs, valid = pairs_of_hex(values)
            return valid & (find_pairs(subset, pairs) >= 0)
        if self.among:
            wanted = self._wanted(source)
            return np.fromiter((value in wanted for value in values), bool, len(values))
        there = np.array([isinstance(value, (int, float)) for value in values], bool)
        check(bool(there.any()), "low", f"{self.column!r} holds no numbers that could be compared")
        numbers = np.full(len(values), np.nan)
        numbers[there] = values[there].astype(np.float64)
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return (numbers >= low) & (numbers <= high)

    def _wanted(self, source: Source) -> set[object]:
        """The values as the column has them: numbers for names of classes."""
        column = source.columns[self.column]
        if column.kind != "class":
            return set(self.among)
        places: dict[object, int] = {}
        for names in (column.classes.names if column.classes is not None else {}).values():
            places |= {
                name: place for place, name in reversed(list(enumerate(names))) if name is not None
            }
        for value in self.among:
            known = not isinstance(value, str) or value in places
            check(
                known,
                "among",
                f"{value!r} is no class of "
                f"{self.column!r}{nearest(value, [str(name) for name in places])}",
            )
        return {places.get(value, value) for value in self.among}


def _unknown(column: str, source: Source) -> str:
    return (
        f"{source.name} has no column {column!r}{nearest(column, list(source.columns))} (columns: "
        f"{', '.join(source.columns)})"
    )


def _read_subset(file: str) -> np.ndarray:
    """The uids as sorted pairs. Raises DataError."""
    try:
        content = paths.read_bytes(paths.as_path(file))
        pairs = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header raises many types
        raise DataError(
            f"{file}: is no .npy file of uids ({type(error).__name__}: {error})"
        ) from None
    if pairs.dtype != PAIR or pairs.ndim != 1:
        raise DataError(
            f"{file}: holds {pairs.dtype} of shape {pairs.shape}; a subset is one list of "
            f"dtype u8,u8"
        )
    return pairs if is_sorted(pairs) else np.sort(pairs)
