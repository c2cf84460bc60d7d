"""What every source of records is: records by number, with typed columns.

A source knows no split, language or label of its own: those are columns, or options of its config.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from jaxvl.aliases import ColumnValue
from jaxvl.data.classes import ClassSet

Kind = Literal["image", "frames", "audio", "text", "texts", "class", "int", "float", "array"]
Record = Mapping[str, ColumnValue]  # column -> value; a column that the record lacks is not in it
Log = Callable[[str], None]
ABSENT = {
    "class": -1,
    "int": 0,
    "float": np.nan,
    "text": "",
}  # what `Source.column` holds for a record without a value


@dataclasses.dataclass(frozen=True)
class Column:
    """Type of a column.

    Attributes:
      kind: what a value is:
        image   bytes of an encoded picture
        frames  list of bytes, the encoded pictures of a clip
        audio   bytes of an encoded sound (FLAC, WAV, Ogg, MP3)
        text    str
        texts   list of str
        class   int, a place in `classes`
        int     int
        float   float
        array   np.ndarray
      optional: whether records may lack it.
      classes: of kind `class`: what the numbers mean, where the source knows it.
      numbers: whether its values are numbers of records of this source, -1 standing for none.
    """

    kind: Kind
    optional: bool = False
    classes: ClassSet | None = None
    numbers: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a mixture (`mixture.py`).

    Attributes:
      name: which part this is when a run is resumed with other parts.
      start, end: its records are `start … end - 1` of the mixture.
      weight: how often its records come; None: each as often as any other.
      shards: int64 [k], records of its shards.
    """

    name: str
    start: int
    end: int
    weight: float | None
    shards: np.ndarray

    def __len__(self) -> int:
        return self.end - self.start


class Source(abc.ABC):
    """Records by number. It is thread-safe, and picklable: a worker process opens its files anew.

    Attributes:
      name: where the records come from, for messages.
      fingerprint: says what the records are. Equal files have equal fingerprints wherever they lie
        and whenever they were written. It comes from what is read at the start anyway: names,
        sizes, footers, indexes, checksums. So a picture that is replaced by another one of the same
        size may go unnoticed. It keys caches and guards a resume.
      columns: name -> type.
      parts: of a mixture; empty: this is none.
    """

    name: str
    fingerprint: str
    columns: Mapping[str, Column]
    parts: Sequence[Part] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """Record `i`, or some of its columns: a text is read without the picture beside it.

        Raises:
          BadRecord: this record cannot be used.
          DataError: nothing can be read any more (a shard is gone).
          IndexError: there is no such record.
        """

    def __getitem__(self, i: int) -> Record:
        return self.read(i)

    def column(self, name: str) -> np.ndarray | None:
        """All values of a cheap column (numbers, classes, short texts); None where they would have
        to be read one by one."""
        return None

    def present(self, name: str) -> np.ndarray | None:
        """bool [n]: which records have a column; None where only reading a record tells."""
        column = self.columns.get(name)
        return np.ones(len(self), bool) if column is not None and not column.optional else None

    def shards(self) -> np.ndarray:
        """int64 [shards]: records of each shard, in order. A shard is what is fast to read
        together."""
        return np.array([len(self)], np.int64)

    def left_out(self) -> Mapping[str, int]:
        """Cause -> files or members that were found when the source was opened and are in no
        record. It is the same on every host."""
        return {}


class SourceConfig(Protocol):
    """A registered frozen dataclass. Equal configs open equal sources."""

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its own fields; DataError where what is there cannot be
        read."""
