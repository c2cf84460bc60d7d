"""What every source of records is: records by number, with typed columns.

A source knows no split, language or label of its own: those are columns, or options of its config.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from jaxvl.data.classes import ClassSet

Kind = Literal["image", "frames", "audio", "text", "texts", "class", "int", "float", "array"]
Record = Mapping[str, Any]  # column -> value; a column that the record lacks is not in it
Log = Callable[[str], None]


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
    """

    kind: Kind
    optional: bool = False
    classes: ClassSet | None = None


class Source(abc.ABC):
    """Records by number. It is thread-safe, and picklable: a worker process opens its files anew.

    Attributes:
      name: where the records come from, for messages.
      fingerprint: says what the records are, by content: sizes and dates of the files, or checksums. Equal records have
        equal fingerprints wherever they lie, as far as the format tells. It keys caches and guards a resume.
      columns: name -> type.
    """

    name: str
    fingerprint: str
    columns: Mapping[str, Column]

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
        """All values of a cheap column (numbers, classes, short texts); None where they would have to be read one by one."""
        return None

    def present(self, name: str) -> np.ndarray | None:
        """bool [n]: which records have a column; None where only reading a record tells."""
        column = self.columns.get(name)
        return np.ones(len(self), bool) if column is not None and not column.optional else None

    def shards(self) -> np.ndarray:
        """int64 [shards]: records of each shard, in order. A shard is what is fast to read together."""
        return np.array([len(self)], np.int64)


class SourceConfig(Protocol):
    """A registered frozen dataclass. Equal configs open equal sources."""

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its own fields; DataError where what is there cannot be read."""
