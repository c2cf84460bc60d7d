"""Several sources as one.

    source = dict(name="mixture", parts=(
        dict(source=dict(name="webdataset", files="…"), weight=0.85),
        dict(source=dict(name="parquet", files="…"), weight=0.15),
    ))

Its records are those of the parts, one part after the other. The sampler `mixture` draws rows by
the weights.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from jaxvl.config import ConfigError, Range, check
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import ABSENT, Column, Log, Part, Record, Source


@dataclasses.dataclass(frozen=True)
class PartConfig:
    """One source of a mixture.

    Attributes:
      source: by name, with its options.
      weight: how often its records come, relative to the other parts' weights; the sampler says of
        what it is a weight. None (then for all parts): every record of the mixture comes equally
        often.
      name: which part this is when a run is resumed with other parts; None: its place, "0", "1" …
    """

    source: Annotated[Any, SOURCES]
    weight: Annotated[float, Range(0.0, 1e12)] | None = None
    name: str | None = None


@SOURCES.register("mixture")
@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Several sources as one.

    A column that some parts lack is optional. A class column whose class sets differ gets a place
    for every class of each set: its numbers are those of the first set, then those of the second …

    Attributes:
      parts: the sources.
    """

    parts: tuple[PartConfig, ...]

    def __post_init__(self):
        check(bool(self.parts), "parts", "must name at least one source")
        weights = [part.weight for part in self.parts]
        given = [weight is not None for weight in weights]
        check(
            all(given) or not any(given),
            "parts",
            f"the weights {weights} must be given for all parts or none",
        )
        check(not all(given) or any(weights), "parts", f"the weights {weights} must not all be 0")
        check(
            len(set(self.names)) == len(self.names),
            "parts",
            f"the names {list(self.names)} must differ",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(
            str(i) if part.name is None else part.name for i, part in enumerate(self.parts)
        )

    def open(self, log: Log = print) -> MixtureSource:
        """Raises ConfigError as the parts do, and where their columns do not fit; DataError as the
        parts do."""
        sources = []
        for i, part in enumerate(self.parts):
            try:
                sources.append(part.source.open(log))
            except ConfigError as error:
                raise error.under(f"parts[{i}].source") from None
        return MixtureSource(sources, [part.weight for part in self.parts], self.names)


class MixtureSource(Source):
    """The records of several sources, one source after the other.

    Attributes:
      parts: what each source has become.

    Args:
      sources: at least one.
      weights: of each; None for all or none.
      names: of each; they differ.

    Raises:
      ConfigError: at `parts`: a column is of different kinds, or has numbers of classes that cannot
        be told apart; a part is itself a mixture with weights.
      DataError: a part has no records.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float | None], names: Sequence[str]
    ):
        self._sources = list(sources)
        for name, source in zip(names, sources):
            if len(source) == 0:
                raise DataError(f"part {name!r} of the mixture, {source.name}, has no records")
            weighted = any(part.weight is not None for part in source.parts)
            check(
                not weighted,
                "parts",
                f"part {name!r} is a mixture whose weights would be lost; its parts must be "
                f"named here",
            )
        self._starts = [0]
        for source in sources:
            self._starts.append(self._starts[-1] + len(source))
        self.name = " + ".join(source.name for source in sources)
        prints = [source.fingerprint for source in sources]
        self.fingerprint = hashlib.sha256(json.dumps(prints).encode()).hexdigest()
        shards = [source.shards() for source in sources]
        described = zip(names, self._starts, self._starts[1:], weights, shards)
        self.parts = tuple(Part(*each) for each in described)
        self.columns: dict[str, Column] = {}
        self._first_classes: list[dict[str, int]] = [
            {} for _ in sources
        ]  # of each part: class column -> its first class
        for column in dict.fromkeys(name for source in sources for name in source.columns):
            self._add(column)

    def _add(self, name: str) -> None:
        """Joins the parts' columns of one name."""
        owners = [
            (i, source.columns[name])
            for i, source in enumerate(self._sources)
            if name in source.columns
        ]
        kinds: dict[str, int] = {}  # kind -> the first part where the column is of it
        for i, column in owners:
            kinds.setdefault(column.kind, i)
        if len(kinds) > 1:
            kinds_found = " and ".join(
                f"{kind!r} in part {self.parts[i].name!r}" for kind, i in kinds.items()
            )
            raise ConfigError(
                "parts", f"column {name!r} is of kind {kinds_found}; must be of one kind"
            )
        optional = len(owners) < len(self._sources) or any(column.optional for _, column in owners)
        classes = None
        if "class" in kinds:
            classes = self._join_classes(name, owners)
        self.columns[name] = Column(owners[0][1].kind, optional, classes)

    def _join_classes(self, name: str, owners: Sequence[tuple[int, Column]]) -> ClassSet | None:
        """Gives each different class set of a column its first class; None where no part knows its
        classes."""
        without = [i for i, column in owners if column.classes is None]
        if len(without) == len(owners):
            return None
        if without:
            part = self.parts[without[0]].name
            raise ConfigError(
                "parts",
                f"column {name!r} of part {part!r} has no class set, but other parts' have; "
                f"must be all or none",
            )
        sets: list[ClassSet] = []
        for i, column in owners:
            place = next(
                (p for p, known in enumerate(sets) if _equal(known, column.classes)), len(sets)
            )
            if place == len(sets):
                sets.append(column.classes)
            self._first_classes[i][name] = sum(len(known) for known in sets[:place])
        return _joined(sets)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = bisect.bisect_right(self._starts, i) - 1
        source = self._sources[part]
        if columns is not None:
            columns = [name for name in columns if name in source.columns]
        record = source.read(i - self._starts[part], columns)
        moved = {
            name: first
            for name, first in self._first_classes[part].items()
            if first and name in record
        }
        if not moved:
            return record
        return {**record, **{name: int(record[name]) + first for name, first in moved.items()}}

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        values = []
        for i, source in enumerate(self._sources):
            value = self._column_of_part(i, source, name)
            if value is None:
                return None
            values.append(value)
        return np.concatenate(values)

    def _column_of_part(self, i: int, source: Source, name: str) -> np.ndarray | None:
        column = self.columns.get(name)
        if column is None:
            return None
        if name not in source.columns:
            absent = ABSENT.get(column.kind)
            return None if absent is None else np.full(len(source), absent)
        values = source.column(name)
        first = self._first_classes[i].get(name, 0)
        if values is None or not first:
            return values
        present = source.present(name)
        moved = values.astype(np.int64) + first
        return moved if present is None else np.where(present, moved, values)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        found = []
        for source in self._sources:
            known = source.present(name) if name in source.columns else np.zeros(len(source), bool)
            if known is None:
                return None
            found.append(known)
        return np.concatenate(found)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return np.concatenate([part.shards for part in self.parts])

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`."""
        counts: collections.Counter[str] = collections.Counter()
        for source in self._sources:
            counts.update(source.left_out())
        return counts


def _equal(one: ClassSet, other: ClassSet) -> bool:
    return dict(one.names) == dict(other.names) and one.templates == other.templates


def _joined(sets: Sequence[ClassSet]) -> ClassSet:
    """The classes of all sets, one set after the other. A set that lacks a language has no names in
    it."""
    if len(sets) == 1:
        return sets[0]
    languages = dict.fromkeys(language for known in sets for language in known.names)
    names: dict[str, tuple[str | None, ...]] = {}
    for language in languages:
        joined: list[str | None] = []
        for known in sets:
            joined.extend(known.names.get(language, (None,) * len(known)))
        names[language] = tuple(joined)
    same = all(known.templates == sets[0].templates for known in sets)
    return ClassSet(names, sets[0].templates if same else ())
