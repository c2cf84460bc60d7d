"""Some of the records of a source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Part, Record, Source


class Selected(Source):
    """Records of a source by number.

    Args:
      source: of the records.
      index: int [n], their numbers, ascending.
      why: what they have in common, for messages and the fingerprint.
    """

    def __init__(self, source: Source, index: np.ndarray, why: str):
        self.source = source
        self.name = source.name
        self.columns = source.columns
        self.fingerprint = f"{source.fingerprint}/{why}"
        self._index = np.asarray(index, np.int64)
        self._why = why

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """What is left of the parts of a mixture; empty for any other source."""
        sizes = self.source.shards()
        starts = np.cumsum(sizes) - sizes
        left = _left(self._index, sizes)
        found = []
        for part in self.source.parts:
            start, end = np.searchsorted(self._index, [part.start, part.end]).tolist()
            own = left[(starts >= part.start) & (starts < part.end)]
            found.append(dataclasses.replace(part, start=start, end=end, shards=own[own > 0]))
        return tuple(found)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.source.read(int(self._index[i]), columns)

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`. Numbers of records are those of the selected ones; -1: left out."""
        values = self.source.column(name)
        if values is None:
            return None
        values = values[self._index]
        if not self.columns[name].numbers:
            return values
        places = np.searchsorted(self._index, values)
        found = self._index[np.minimum(places, len(self._index) - 1)] == values
        return np.where(found, places, -1)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        has = self.source.present(name)
        return None if has is None else has[self._index]

    def shards(self) -> np.ndarray:
        """See `base.Source`: what is left of each shard."""
        left = _left(self._index, self.source.shards())
        return left[left > 0]

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`: what was left out of the whole source. Records that are not selected
        do not count."""
        return self.source.left_out()


def _left(index: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64 [shards]: how many of the numbers `index` are in each shard."""
    upto = np.searchsorted(index, np.cumsum(sizes))
    return np.diff(np.concatenate([[0], upto])).astype(np.int64)


def select(source: Source, needs: Iterable[tuple[str, ...]]) -> Source:
    """The records that have at least one column of each entry of `needs`; what a source cannot tell
    is left to the reader.

    Raises DataError where no record has any.
    """
    wanted = None
    unmet = []
    for names in needs:
        known = [source.present(name) for name in names if name in source.columns]
        if any(has is None for has in known) or all(has.all() for has in known):
            continue
        has_any = np.logical_or.reduce(known)
        if not has_any.any():
            raise DataError(f"{source.name}: no record has {' or '.join(names)}")
        wanted = has_any if wanted is None else wanted & has_any
        unmet.append("|".join(names))
    if wanted is None or wanted.all():
        return source
    if not wanted.any():
        raise DataError(f"{source.name}: no record has all of {', '.join(unmet)}")
    return Selected(source, np.flatnonzero(wanted), f"having {','.join(unmet)}")
