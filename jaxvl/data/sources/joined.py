"""A source with further columns of another one, joined by a key.

    source = dict(name="joined", key="sha256",
        source=dict(name="webdataset", files="…", columns=dict(image="jpg", sha256="json:sha256")),
        other=dict(name="parquet", files="recap/*.parquet", columns=dict(sha256="sha256",
        recaption="re_caption")))

Of several records of the other source with one key the first is taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import numpy as np

from jaxvl.config import ConfigError, NonEmpty, check, nearest
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import ABSENT, Column, Log, Record, Source
from jaxvl.data.sources.pairs import find_pairs, pairs_of_keys, values_of
from jaxvl.data.sources.remembered import remembered_arrays
from jaxvl.data.sources.selected import Selected

KEYS = ("text", "int", "class")


@SOURCES.register("joined")
@dataclasses.dataclass(frozen=True)
class Joined:
    """See the module's text.

    Attributes:
      source: whose records these are.
      other: gives its columns to the records of `source` with the same key; the columns' names
        differ, but for the key's.
      key: column of `source`.
      other_key: column of `other`; None: of the same name.
      keep: whether a record without a partner stays; it then lacks the further columns.
    """

    source: Annotated[Any, SOURCES]
    other: Annotated[Any, SOURCES]
    key: Annotated[str, NonEmpty("the name of a column")]
    other_key: str | None = None
    keep: bool = False

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its fields; DataError where no record has a partner."""
        source = _open(self.source, "source", log)
        other = _open(self.other, "other", log)
        other_key = self.other_key or self.key
        _check_key(source, self.key, "key")
        _check_key(other, other_key, "other_key" if self.other_key else "key")
        more = [name for name in other.columns if name != other_key]
        both = [name for name in more if name in source.columns]
        check(
            not both,
            "other",
            (
                f"has the column {both[0]!r}, which source has as well; name it otherwise in its "
                f"columns"
            )
            if both
            else "",
        )
        check(bool(more), "other", f"{other.name} has no columns beside the key {other_key!r}")
        parts = json.dumps([source.fingerprint, other.fingerprint, self.key, other_key])
        fingerprint = hashlib.sha256(parts.encode()).hexdigest()
        index, _ = remembered_arrays(
            "joined",
            fingerprint[:32],
            lambda: (_partners(source, self.key, other, other_key), {}),
            log,
        )
        found = np.flatnonzero(index >= 0)
        if len(found) == 0:
            raise DataError(
                f"{source.name}: no record has a {self.key!r} that {other.name} has as "
                f"{other_key!r}"
            )
        log(
            f"{source.name}: {len(found):,} of {len(source):,} records have a partner in "
            f"{other.name}"
        )
        joined = JoinedSource(source, other, index, more, fingerprint)
        return (
            joined
            if self.keep or len(found) == len(source)
            else Selected(joined, found, "a partner")
        )


def _open(config: Any, field: str, log: Log) -> Source:
    try:
        return config.open(log)
    except ConfigError as error:
        raise error.under(field) from None


def _check_key(source: Source, key: str, field: str) -> None:
    known = list(source.columns)
    check(
        key in known,
        field,
        f"{source.name} has no column {key!r}{nearest(key, known)} (columns: {', '.join(known)})",
    )
    kind = source.columns[key].kind
    check(
        kind in KEYS,
        field,
        f"{key!r} of {source.name} is of kind {kind}; must be one of {', '.join(KEYS)}",
    )


def _partners(source: Source, key: str, other: Source, other_key: str) -> np.ndarray:
    """int64 [n]: the other source's record of each record; -1: none."""
    theirs = values_of(other, other_key)
    there = np.flatnonzero([value is not None for value in theirs])
    pairs = pairs_of_keys(theirs[there])
    order = np.lexsort((pairs["f1"], pairs["f0"]))  # stable: of equal keys the first comes first
    ours = values_of(source, key)
    places = find_pairs(pairs[order], pairs_of_keys(ours))
    lacking = np.array([value is None for value in ours], bool)
    partners = (
        np.where(places >= 0, there[order[np.maximum(places, 0)]], -1)
        if len(order)
        else np.full(len(ours), -1)
    )
    return np.where(lacking, -1, partners).astype(np.int64)


class JoinedSource(Source):
    """Records of one source with columns of another.

    Args:
      source, other: the two.
      index: int64 [n], number of the other's record; -1: none.
      more: columns of the other.
      fingerprint: see `base.Source`.
    """

    def __init__(
        self,
        source: Source,
        other: Source,
        index: np.ndarray,
        more: Collection[str],
        fingerprint: str,
    ):
        self.source = source
        self.other = other
        self.name = f"{source.name} + {other.name}"
        self.fingerprint = fingerprint
        self.parts = source.parts
        self._index = np.asarray(index)
        self._more = tuple(more)
        lacking = bool((self._index < 0).any())
        self.columns: dict[str, Column] = dict(source.columns)
        for name in more:
            column = other.columns[name]
            self.columns[name] = dataclasses.replace(column, optional=column.optional or lacking)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        ours = (
            None if columns is None else [name for name in columns if name in self.source.columns]
        )
        theirs = [name for name in self._more if columns is None or name in columns]
        record = dict(self.source.read(i, ours)) if ours is None or ours else {}
        partner = int(self._index[i])
        if theirs and partner >= 0:
            record.update(self.other.read(partner, theirs))
        return record

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name not in self._more:
            return self.source.column(name)
        values = self.other.column(name)
        absent = ABSENT.get(self.columns[name].kind)
        if values is None or absent is None:
            return None
        out = values[np.maximum(self._index, 0)].copy()
        out[self._index < 0] = absent
        return out

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name not in self._more:
            return self.source.present(name)
        known = self.other.present(name)
        return None if known is None else known[np.maximum(self._index, 0)] & (self._index >= 0)

    def shards(self) -> np.ndarray:
        """See `base.Source`: those of the first source, whose pictures are what takes long to
        read."""
        return self.source.shards()

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`."""
        return self.source.left_out()
