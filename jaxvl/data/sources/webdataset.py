"""Tar shards as webdataset, open_clip and img2dataset write and read them, by random access.

A sample is the members of one key: `000000001.jpg`, `000000001.txt`, `000000001.json`. Every sample
is a record, in the order of the files and of the first members; one that lacks a column is a bad
record of that cause. An index of each shard is made once, in one pass over its headers
(`tar_index.py`). Nothing is unpacked and no pickle is read.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from jaxvl.config import ConfigError, PathText, check, nearest, to_path
from jaxvl.config.errors import shown
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Kind, Log, Record, Source
from jaxvl.data.sources.file_patterns import expand_files
from jaxvl.data.sources.member_columns import (
    MemberColumn,
    at_path,
    decode,
    parse_columns,
    parse_json,
)
from jaxvl.data.sources.range_files import RangeFiles
from jaxvl.data.sources.tar_index import TarIndex
from jaxvl.data.sources.tar_shards import Indexes, Shard, open_shards
from jaxvl.data.sources.values import as_value, common_kind, is_missing, kind_of

OPEN_CLIP_COLUMNS = {"image": "jpg;png;jpeg;webp", "text": "txt;caption"}
MOST_BYTES = 2**28  # of a member that is read
PROBED = 64  # records that may decide the kind of a column
MOST_KEYS = 20_000_000  # that are listed at once


@SOURCES.register("webdataset")
@dataclasses.dataclass(frozen=True)
class WebDataset:
    """Config of a source of tar shards.

    Attributes:
      files: shards: paths or URLs (gs://, s3://, https://) with braces (`{00000..00099}.tar`) or
        globs, or folders; `::` joins several.
      columns: name -> members: endings (`"jpg;png"`), or keys of a JSON member
        (`"json:caption;alt"`); the first that is there wins. A pattern (`"*.jpg"`) means all
        members that match, as frames. `key` and `url` (the sample's key, its shard) are added.
      optional: columns that records may lack; a record that lacks another one is skipped and
        counted.
      kinds: column -> kind, where its ending does not tell it. `texts` of a text member are its
        lines.
      index: folder for the indexes; None: beside the shards where that can be written, else in the
        cache folder.
    """

    files: PathText | tuple[PathText, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(OPEN_CLIP_COLUMNS))
    optional: tuple[str, ...] = ()
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    index: PathText | None = None

    def __post_init__(self):
        parse_columns(self.columns, self.kinds)
        for name in self.optional:
            columns = list(self.columns)
            check(
                name in columns,
                "optional",
                f"{name!r} is no column{nearest(name, columns)} (columns: {', '.join(columns)})",
            )

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its fields; DataError where a shard is not there or is no
        tar."""
        files = expand_files(self.files, "files")
        columns = {
            name: text
            for name, text in (("key", "__key__"), ("url", "__url__"))
            if name not in self.columns
        }
        members = parse_columns({**self.columns, **columns}, self.kinds)
        folder = None if self.index is None else to_path(self.index, "index")
        found = open_shards(files, log, folder)
        self._check_members(members, found.suffixes)
        name = self.files if isinstance(self.files, str) else "::".join(self.files)
        indexes = Indexes(found.shards, folder, log)
        return TarSource(
            shown(name).strip("'"), found.shards, indexes, members, frozenset(self.optional)
        )

    def _check_members(
        self, members: Mapping[str, MemberColumn], there: Sequence[str] | None
    ) -> None:
        """Raises ConfigError where no sample at all has what a column needs."""
        for name, about in members.items():
            needed = there and not about.info and name not in self.optional
            if needed and not about.members(there):
                endings = " or ".join(sorted({repr(choice.ending) for choice in about.choices}))
                shortest = sorted(there, key=lambda ending: (len(ending), ending))[:20]
                raise ConfigError(
                    f"columns.{name}",
                    f"no sample has {endings} (members there are: {', '.join(shortest)})",
                )


class TarSource(Source):
    """Samples of tar shards.

    Args:
      name: for messages.
      shards: in order.
      indexes: of the shards.
      members: column -> where its values come from; one whose kind is not known is looked at.
      optional: columns that records may lack.

    Raises:
      DataError: there are no samples.
    """

    def __init__(
        self,
        name: str,
        shards: list[Shard],
        indexes: Indexes,
        members: Mapping[str, MemberColumn],
        optional: frozenset[str],
    ):
        self.name = name
        self._shards = shards
        self._indexes = indexes
        self._starts = [0, *itertools.accumulate(shard.samples for shard in shards)]
        self._files = RangeFiles()
        if self._starts[-1] == 0:
            raise DataError(
                f"{name}: the {len(shards):,} shards hold no samples, that is members such as "
                f"0001.jpg and 0001.txt"
            )
        self._members = {column: self._with_kind(about) for column, about in members.items()}
        self.columns = {
            column: Column(_kind(about), column in optional)
            for column, about in self._members.items()
        }
        self.fingerprint = _fingerprint(shards, self._members)

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, i: int) -> str:
        """What the names of the members of record `i` have in common."""
        _, index, row = self._place(i)
        return index.key(row)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return np.array([shard.samples for shard in self._shards if shard.samples > 0], np.int64)

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`: members that are in no sample, by why."""
        counts: collections.Counter[str] = collections.Counter()
        for shard in self._shards:
            counts.update({cause: n for cause, (n, _) in shard.left_out.items()})
        return counts

    def samples(self) -> list[int]:
        """Records of each tar; `shards` leaves out the empty ones."""
        return [shard.samples for shard in self._shards]

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        shard, index, row = self._place(i)
        sample = _Sample(shard, index, row)
        names = (
            list(self.columns)
            if columns is None
            else [name for name in columns if name in self.columns]
        )
        wanted: set[str] = set()
        for name in names:
            about = self._members[name]
            endings = [] if about.info else about.members(sample.members)
            if not endings and not about.info and not self.columns[name].optional:
                raise BadRecord(f"no {name}", f"{sample.where}: {sample.what_is_there()}")
            wanted.update(endings)
        values = _Values(sample, self._read_members(sample, wanted))
        record = {}
        for name in names:
            value = values.of(self._members[name])
            if value is not None:
                record[name] = value
            elif not self.columns[name].optional:
                keys = " or ".join(
                    f"{ending}[{']['.join(path)}]" for ending, path in self._members[name].choices
                )
                raise BadRecord(f"no {name}", f"{sample.where}: has no {keys} that is not empty")
        return record

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        about = self._members.get(name)
        if about is None or len(self) > MOST_KEYS:
            return None
        if about.info is None:
            return self._numbers(about)
        if about.info == "__url__":
            return np.repeat(
                np.array([shard.file for shard in self._shards], object), self.samples()
            )
        keys = itertools.chain.from_iterable(
            self._indexes[s].all_keys() for s in range(len(self._shards))
        )
        return np.array(list(keys), object)  # of fixed width, one long key would make all long

    def _numbers(self, about: MemberColumn) -> np.ndarray | None:
        """int64 [n]: numbers that the indexes hold."""
        ending, path = about.choices[0]
        if about.kind not in ("class", "int") or len(about.choices) > 1 or path:
            return None
        found = []
        for s in range(len(self._shards)):
            values = self._indexes[s].numbers_of(ending)
            if values is None:
                return None
            found.append(values)
        return np.concatenate(found)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        about = self._members.get(name)
        if about is None or about.info or not self.columns[name].optional:
            return super().present(name)
        if about.has_keys:
            return None
        found = []
        for s in range(len(self._shards)):
            index = self._indexes[s]
            found.append(
                index.with_suffixes(
                    {suffix for suffix in index.suffixes if about.members([suffix])}
                )
            )
        return np.concatenate(found)

    def _place(self, i: int) -> tuple[Shard, TarIndex, int]:
        """Shard, index and row of record `i`. Raises IndexError, DataError."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: there is no record {i} of {len(self):,}")
        s = bisect.bisect_right(self._starts, i) - 1
        return self._shards[s], self._indexes[s], int(i) - self._starts[s]

    def _read_members(self, sample: _Sample, endings: Collection[str]) -> dict[str, bytes]:
        """Ending -> content of members of one sample. Raises BadRecord, DataError."""
        if not endings:
            return {}
        ordered = sorted(endings)
        ranges = [sample.members[ending] for ending in ordered]
        for ending, (_, size) in zip(ordered, ranges):
            if size > MOST_BYTES:
                raise BadRecord(
                    "member is too large",
                    f"{sample.where}.{ending}: {size:,} bytes (at most {MOST_BYTES:,} are read)",
                )
        return dict(zip(ordered, self._files.read(sample.shard.file, sample.shard.state, ranges)))

    def _with_kind(self, about: MemberColumn) -> MemberColumn:
        """A column of JSON keys with the kind of what the first records hold; text where they hold
        nothing."""
        if about.kind is not None:
            return about
        kinds = [kind_of(value) for value in self._first_values(about)]
        keys = ";".join(choice.path[-1] for choice in about.choices)
        known = sorted({kind for kind in kinds if kind is not None})
        kind = common_kind(kinds)
        check(
            kind is not None or not known,
            "columns",
            f"{keys!r} holds {' and '.join(known)}; say in kinds what is meant",
        )
        return dataclasses.replace(about, kind=kind or "text")

    def _first_values(self, about: MemberColumn) -> Iterable[object]:
        for i in range(min(PROBED, len(self))):
            sample = _Sample(*self._place(i))
            try:
                values = _Values(sample, self._read_members(sample, about.members(sample.members)))
                yield values.as_it_stands(about)
            except BadRecord:  # counted when it is read
                continue


class _Sample:
    """One sample: where it is, and its members."""

    def __init__(self, shard: Shard, index: TarIndex, row: int):
        self.shard = shard
        self._index = index
        self._row = row
        self.members = index.members(row)

    @functools.cached_property
    def key(self) -> str:
        """What the names of the members have in common."""
        return self._index.key(self._row)

    @functools.cached_property
    def where(self) -> str:
        """The sample's place, for messages."""
        return f"{self.shard.file}: {self.key}"

    def what_is_there(self) -> str:
        """The members, for the message of a bad record."""
        left_out = ", ".join(f"{cause}: {n}" for cause, (n, _) in self.shard.left_out.items())
        besides = f" (left out of the shard: {left_out})" if left_out else ""
        return (
            f"has only "
            f"{shown(', '.join(f'{self.key}.{ending}' for ending in self.members))}{besides}"
        )


class _Values:
    """Values of a sample's columns; JSON is parsed once.

    Args:
      contents: ending -> content of the members that were read.
    """

    def __init__(self, sample: _Sample, contents: Mapping[str, bytes]):
        self._sample = sample
        self._contents = contents
        self._json: dict[str, object] = {}

    def of(self, about: MemberColumn) -> object | None:
        """None where the sample has no such value. Raises BadRecord."""
        if about.info:
            return self._sample.key if about.info == "__key__" else self._sample.shard.file
        if about.pattern:
            return [
                self._contents[ending] for ending in about.members(self._sample.members)
            ] or None
        for ending, path in about.choices:
            if ending not in self._contents:
                continue
            where = f"{self._sample.where}.{ending}"
            if not path:
                return decode(self._contents[ending], _kind(about), where)
            value = self._at(ending, path)
            if not is_missing(value, _kind(about)):
                return as_value(value, _kind(about), where)
        return None

    def as_it_stands(self, about: MemberColumn) -> object | None:
        """The first value of a column of JSON keys. Raises BadRecord."""
        found = [
            self._at(ending, path) for ending, path in about.choices if ending in self._contents
        ]
        return next((value for value in found if value is not None), None)

    def _at(self, ending: str, path: tuple[str, ...]) -> object | None:
        if ending not in self._json:
            self._json[ending] = parse_json(
                self._contents[ending], f"{self._sample.where}.{ending}"
            )
        return at_path(self._json[ending], path)


def _kind(about: MemberColumn) -> Kind:
    return about.kind or "text"


def _fingerprint(shards: Collection[Shard], members: Mapping[str, MemberColumn]) -> str:
    """By name without folder, size and index of each shard, and what the columns are."""
    digest = hashlib.sha256()
    for shard in shards:
        name = shard.file.rpartition("/")[2]
        digest.update(
            f"{name}\0{shard.state.size}\0{shard.digest}\n".encode("utf-8", "surrogateescape")
        )
    for column, about in sorted(members.items()):
        digest.update(repr((column, about)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
