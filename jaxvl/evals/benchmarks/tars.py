"""Pictures in tar shards, with the labels and captions of all samples in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Record, Source
from jaxvl.data.sources.tar_index import NO_NUMBER
from jaxvl.data.sources.tar_scan import CUT_SHORT, DAMAGED, NO_END
from jaxvl.data.sources.webdataset import WebDataset
from jaxvl.evals.benchmarks.files import as_objects

# Suffixes of pictures in the order in which CLIP_benchmark prefers them.
PICTURES = ("webp", "png", "jpg", "jpeg")


@dataclasses.dataclass(frozen=True)
class Member:
    """A small member of every sample that becomes a column held in memory.

    Attributes:
      suffix: of the member.
      column: type of the column.
      parse: what the source gives (int, text, array) -> value; None: as it is.
    """

    suffix: str
    column: Column
    parse: Callable[[Any], Any] | None = None


def split_captions(text: str) -> list[str]:
    """Captions, one a line; as CLIP_benchmark's reader, a line also ends at U+2028 and its like."""
    return text.splitlines()


_READ_AS = {"class": "int", "texts": "text"}  # kind of a column -> kind that the source reads


def open_shards(name: str, files: Sequence[pathlib.Path], members: Mapping[str, Member]) -> Source:
    """Records of tar shards in their order: `image`, and a column for each of `members`, which a
    record may lack.

    Raises DataError where a shard is missing or cut short: figures of a part of a benchmark are
    none of the benchmark.
    """
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: is missing")
    columns = {
        "image": ";".join(PICTURES),
        **{column: member.suffix for column, member in members.items()},
    }
    kinds = {
        column: _READ_AS.get(member.column.kind, member.column.kind)
        for column, member in members.items()
    }
    messages: list[str] = []
    try:
        inner = WebDataset(tuple(map(str, files)), columns, tuple(columns), kinds).open(
            messages.append
        )
    except ConfigError as error:
        raise DataError(f"{name}: {error}") from None
    for text in messages:
        if any(cause in text for cause in (CUT_SHORT, DAMAGED, NO_END)):
            raise DataError(f"{name}: {text}")
    return _Shards(name, inner, members)


class _Shards(Source):
    """See `open_shards`."""

    def __init__(self, name: str, inner: Source, members: Mapping[str, Member]):
        self.name = name
        self._inner = inner
        self._held = {column: _values(inner, column, member) for column, member in members.items()}
        self.columns = {"image": Column("image")}
        self.columns |= {
            column: dataclasses.replace(member.column, optional=True)
            for column, member in members.items()
        }

    def __len__(self) -> int:
        return len(self._inner)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the shards and the values in memory."""
        held = {
            column: [_plain(value) for value in values] for column, values in self._held.items()
        }
        return hashlib.sha256(
            f"{self._inner.fingerprint} {held}".encode("utf-8", "surrogateescape")
        ).hexdigest()

    def shards(self) -> np.ndarray:
        return self._inner.shards()

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = self.columns if columns is None else columns
        record = {
            column: values[i]
            for column, values in self._held.items()
            if column in wanted and values[i] is not None
        }
        if "image" in wanted:
            record |= self._inner.read(i, ("image",))
            if "image" not in record:
                raise BadRecord(
                    "record is incomplete",
                    f"{self.name}, record {i}: no picture (.{', .'.join(PICTURES)})",
                )
        return record

    def column(self, name: str) -> np.ndarray | None:
        return as_objects(self._held[name]) if name in self._held else None


def _values(inner: Source, column: str, member: Member) -> list[Any]:
    """Values of all records; None where a record lacks it or holds something else."""
    numbers = inner.column(column)
    if numbers is not None:
        return [None if number == NO_NUMBER else number for number in numbers.tolist()]
    return [_value(inner, i, column, member) for i in range(len(inner))]


def _value(inner: Source, i: int, column: str, member: Member) -> Any | None:
    try:
        value = inner.read(i, (column,)).get(column)
    except BadRecord:
        return None
    return value if value is None or member.parse is None else member.parse(value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
