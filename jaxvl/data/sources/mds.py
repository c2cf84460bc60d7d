"""MosaicML's MDS shards (https://docs.mosaicml.com/projects/streaming), by their documented layout.

    source = dict(name="mds", path="s3://bucket/laion-mds", columns=dict(image="jpg",
    text="caption"))

`index.json` lists the shards with their columns. A shard is u32 n, u32 [n + 1] offsets, a JSON
config and n samples; a sample is a u32 size for each column that has no fixed one, then the
columns' bytes, in the order of their names.

A compressed shard (zstd, gz, bz2) is unpacked once, as a whole, into the cache folder.
"""

from __future__ import annotations

import bz2
import collections
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError, PathText, check
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.mds_values import REFUSED, decode, fixed_size, is_known, kind_of_encoding
from jaxvl.data.sources.places import Places
from jaxvl.data.sources.range_files import RangeFiles
from jaxvl.data.sources.remembered import kept_folder, key_of, own_name
from jaxvl.data.sources.table import Chosen, Found, ParsedTable, choose_columns
from jaxvl.data.sources.values import NOT_UTF8, common_kind, kind_of, nested
from jaxvl.paths import FileState

MOST_TABLES = 256  # offsets of shards in memory
LOOKED_AT = 16  # samples whose values say what a column of bytes or JSON holds
PART = 2**20  # bytes that are unpacked at once


@SOURCES.register("mds")
@dataclasses.dataclass(frozen=True)
class Mds:
    """See the module's text.

    Attributes:
      path: the folder of `index.json`, local or remote.
      columns, kinds: as of the source `parquet`.
    """

    path: PathText
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)

    def open(self, log: Log = print) -> MdsSource:
        """Raises ConfigError at one of its fields; DataError where the index or a shard is damaged
        or missing."""
        root = self.path.rstrip("/")
        content = _read_index(root)
        shards = parse_index(content, root)
        check(sum(shard.samples for shard in shards) > 0, "path", f"{self.path!r} has no samples")
        reader = MdsShards(root, shards, log)
        chosen = choose_columns(_find_columns(reader), self.columns, self.kinds, False, root, log)
        return MdsSource(reader, hashlib.sha256(content).hexdigest(), chosen)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as the index has it.

    Attributes:
      file: from the folder of the index.
      size: bytes of `file`.
      samples: how many.
      columns: name -> encoding, in the order in which they are written.
      sizes: bytes of every value of a column; None: they differ.
      packed: the compressed file and its bytes; None: it is not compressed.
      compression: of `packed`.
    """

    file: str
    size: int
    samples: int
    columns: Mapping[str, str]
    sizes: tuple[int | None, ...]
    packed: tuple[str, int] | None
    compression: str


def _read_index(root: str) -> bytes:
    try:
        return paths.read_bytes(paths.as_path(f"{root}/index.json"))
    except FileNotFoundError:
        raise ConfigError(
            "path", f"{root!r} has no index.json, so it is no folder of MDS shards"
        ) from None
    except OSError as error:
        raise ConfigError(
            "path", f"{root}/index.json cannot be read ({type(error).__name__}: {error})"
        ) from None


def parse_index(content: bytes, root: str) -> list[Shard]:
    """Shards of an `index.json`. Raises DataError."""
    where = f"{root}/index.json"
    try:
        index = json.loads(content)
        shards = [_parse_shard(about, where) for about in index["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: is damaged ({type(error).__name__}: {error})") from None
    for shard in shards:
        if dict(shard.columns) != dict(shards[0].columns):
            raise DataError(
                f"{where}: {shard.file} has columns {dict(shard.columns)}, but "
                f"{shards[0].file} {dict(shards[0].columns)}; write them alike"
            )
    return shards


def _parse_shard(about: Mapping[str, Any], where: str) -> Shard:
    if about["format"] != "mds" or about["version"] != 2:
        raise DataError(
            f"{where}: holds shards of format {about['format']!r}, version "
            f"{about['version']!r}; must be 'mds', version 2"
        )
    columns = dict(zip(about["column_names"], about["column_encodings"], strict=True))
    given = tuple(about["column_sizes"])
    for (name, encoding), size in zip(columns.items(), given, strict=True):
        known = fixed_size(encoding)
        if is_known(encoding) and known != (size or None):
            raise DataError(
                f"{where}: column {name!r} ({encoding}) is said to have {size} bytes, not {known}"
            )
        if size is not None and (not isinstance(size, int) or size < 0):
            raise DataError(f"{where}: column {name!r} is said to have {size!r} bytes")
    raw = about["raw_data"]
    packed = about.get("zip_data")
    samples = about["samples"]
    if not isinstance(samples, int) or samples < 0 or not isinstance(raw["bytes"], int):
        raise DataError(
            f"{where}: {raw['basename']!r} is said to have {samples!r} samples in "
            f"{raw['bytes']!r} bytes"
        )
    zipped = None if packed is None else (_inside(packed["basename"], where), int(packed["bytes"]))
    return Shard(
        _inside(raw["basename"], where),
        raw["bytes"],
        samples,
        columns,
        given,
        zipped,
        about.get("compression") or "",
    )


def _inside(name: str, where: str) -> str:
    """A file's name from the index. Raises DataError where it leads out of the folder."""
    parts = name.split("/")
    if (
        name.startswith("/")
        or ".." in parts
        or "" in parts
        or "\0" in name
        or "://" in name
        or "\\" in name
    ):
        raise DataError(f"{where}: names the shard {name!r}, which is not inside of the folder")
    return name


class MdsShards:
    """Samples by number, as bytes of each column. Thread-safe; picklable.

    Attributes:
      root: folder of the index.
      shards: as the index has them.
      places: of the samples.

    Raises:
      DataError: a shard is not there, or not as long as the index says.
    """

    def __init__(self, root: str, shards: Sequence[Shard], log: Log):
        self.root = root
        self.shards = list(shards)
        self._files: list[str] = []
        self._states: list[FileState] = []
        self._find_files(log)
        self.places = Places([shard.samples for shard in shards])
        self._set_up()

    def _set_up(self) -> None:
        self._ranges = RangeFiles()
        self._lock = threading.Lock()
        self._tables: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._unpacking = collections.defaultdict(threading.Lock)

    def __getstate__(self) -> dict[str, object]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_ranges", "_lock", "_tables", "_unpacking")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_up()

    def _find_files(self, log: Log) -> None:
        """The file of each shard: the plain one where it is there, else the compressed one."""
        plain = paths.file_states([f"{self.root}/{shard.file}" for shard in self.shards])
        packed = [
            None if shard.packed is None else f"{self.root}/{shard.packed[0]}"
            for shard in self.shards
        ]
        asked = [file for file in packed if file is not None]
        states = dict(zip(asked, paths.file_states(asked)))
        for shard, state, zipped in zip(self.shards, plain, packed):
            file = f"{self.root}/{shard.file}"
            size = shard.size
            if state is None and zipped is not None:
                file = zipped
                size = shard.packed[1]
                state = states[zipped]
                check_compression(shard.compression, file)
            if state is None:
                raise DataError(f"{file}: is not there, but index.json names it")
            if state.size != size:
                raise DataError(
                    f"{file}: has {state.size:,} bytes, but {size:,} by index.json; it was "
                    f"cut short or replaced"
                )
            self._files.append(file)
            self._states.append(state)

    def __len__(self) -> int:
        return len(self.places)

    def where(self, i: int) -> str:
        """A sample's place, for messages."""
        shard, number = self.places[i]
        return f"{self.root}/{self.shards[shard].file}, sample {number}"

    def values(self, i: int, columns: Collection[str]) -> dict[str, bytes]:
        """Bytes of some columns of a sample; the others are not read where they lie apart.

        Raises:
          BadRecord: its sizes do not fit. DataError: the shard is gone or has changed.
        """
        number, place = self.places[i]
        shard = self.shards[number]
        start, end = (int(offset) for offset in self._table(number)[place : place + 2])
        variable = 4 * sum(not size for size in shard.sizes)
        if end - start < variable:
            raise BadRecord("record cannot be read", f"{self.where(i)}: has {end - start} bytes")
        [head] = self._read(number, [(start, variable)])
        given = iter(np.frombuffer(head, "<u4").tolist())
        spans = {}
        at = start + variable
        for name, size in zip(shard.columns, shard.sizes):
            size = size or next(given)
            spans[name] = (at, size)
            at += size
        if at != end:
            raise BadRecord(
                "record cannot be read",
                f"{self.where(i)}: its columns have {at - start:,} bytes of {end - start:,}",
            )
        wanted = [name for name in shard.columns if name in columns]
        return dict(zip(wanted, self._read(number, [spans[name] for name in wanted])))

    def _table(self, number: int) -> np.ndarray:
        """Offsets of a shard's samples, int64 [n + 1]. Raises DataError."""
        with self._lock:
            if number in self._tables:
                self._tables.move_to_end(number)
                return self._tables[number]
        shard = self.shards[number]
        length = 4 * (shard.samples + 2)
        if length > shard.size:
            raise DataError(f"{self._files[number]}: is too short for {shard.samples:,} samples")
        [head] = self._read(number, [(0, length)])
        table = np.frombuffer(head, "<u4").astype(np.int64)
        offsets = table[1:]
        ordered = (
            bool((np.diff(offsets) >= 0).all())
            and offsets[0] >= length
            and offsets[-1] <= shard.size
        )
        if table[0] != shard.samples or not ordered:
            raise DataError(
                f"{self._files[number]}: its offsets do not fit {shard.samples:,} samples in "
                f"{shard.size:,} bytes; it is damaged"
            )
        with self._lock:
            self._tables[number] = offsets
            while len(self._tables) > MOST_TABLES:
                self._tables.popitem(last=False)
        return offsets

    def _read(self, number: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        file = self._files[number]
        state = self._states[number]
        shard = self.shards[number]
        if file.endswith(f"/{shard.file}"):
            return self._ranges.read(file, state, ranges)
        unpacked = self._unpacked(number)
        return self._ranges.read(str(unpacked), paths.file_state(str(unpacked)), ranges)

    def _unpacked(self, number: int) -> pathlib.Path:
        """The shard in the cache folder, unpacked if it is not there."""
        file = self._files[number]
        state = self._states[number]
        shard = self.shards[number]
        target = kept_folder("unpacked") / "mds" / f"{key_of('mds', [file], [state])}.mds"
        with self._unpacking[number]:
            with contextlib.suppress(OSError):
                if target.stat().st_size == shard.size:
                    return target
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{own_name()}.part")
            try:
                [content] = self._ranges.read(file, state, [(0, state.size)])
                _unpack(content, shard, file, part)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        return target


def check_compression(compression: str, file: str) -> None:
    """Raises DataError where it cannot be unpacked, ConfigError where its library is not
    installed."""
    name = compression.split(":")[0]
    if name not in ("zstd", "gz", "bz2"):
        raise DataError(
            f"{file}: is compressed by {name or 'nothing that index.json names'!r}; zstd, gz "
            f"and bz2 are read"
        )
    if name == "zstd":
        try:
            import zstandard  # noqa: F401
        except ImportError:
            raise ConfigError(
                "name",
                "'mds' needs zstandard for these shards, which is not installed: pip install "
                '"jaxvl[mds]"',
            ) from None


def _unpack(content: bytes, shard: Shard, file: str, target: pathlib.Path) -> None:
    """Writes the unpacked shard. Raises DataError where it is not as long as the index says: longer
    ones are not unpacked to their end."""
    size = 0
    try:
        with open(target, "wb") as out:
            for part in _parts(content, shard.compression.split(":")[0]):
                size += len(part)
                if size > shard.size:
                    break
                out.write(part)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file}: cannot be unpacked ({type(error).__name__}: {error})") from None
    except Exception as error:  # the compressors have errors of their own
        raise DataError(f"{file}: is damaged ({type(error).__name__}: {error})") from None
    if size != shard.size:
        raise DataError(
            f"{file}: unpacks to "
            f"{'more than ' if size > shard.size else ''}{min(size, shard.size):,} bytes, "
            f"must be {shard.size:,}"
        )


def _parts(content: bytes, compression: str) -> Iterator[bytes]:
    opened: BinaryIO
    if compression == "zstd":
        import zstandard

        opened = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(content), read_across_frames=True
        )
    else:
        opened = (gzip if compression == "gz" else bz2).open(io.BytesIO(content))
    while part := opened.read(PART):
        yield part


def _find_columns(reader: MdsShards) -> dict[str, Found]:
    """Columns by their encodings; those of bytes and JSON by the values of some samples."""
    columns = reader.shards[0].columns
    found = {}
    for name, encoding in columns.items():
        refused = REFUSED.get(
            encoding, "" if is_known(encoding) else f"is encoded as {encoding!r}, which is not read"
        )
        found[name] = Found(kind_of_encoding(encoding), encoding, False, refused=refused)
    open_ones = [name for name, encoding in columns.items() if encoding in ("bytes", "json")]
    if open_ones:
        values: dict[str, list[object]] = {name: [] for name in open_ones}
        for i in sorted({int(i) for i in np.linspace(0, len(reader) - 1, LOOKED_AT)}):
            with contextlib.suppress(BadRecord, ValueError):
                for name, content in reader.values(i, open_ones).items():
                    values[name].append(decode(content, columns[name]))
        for name in open_ones:
            lacking = len(values[name]) < 1 or any(value is None for value in values[name])
            found[name] = Found(
                common_kind(kind_of(value) for value in values[name]), columns[name], lacking
            )
            for value in values[name][:1]:
                parts = value if isinstance(value, dict) else {}
                found |= {
                    f"{name}.{part}": Found(kind_of(of), columns[name], True)
                    for part, of in parts.items()
                }
    return found


class MdsSource(ParsedTable):
    """Samples of MDS shards.

    Args:
      reader: of the shards.
      fingerprint: of the index, which has sizes and, where the writer was asked for them, hashes of
        all shards.
      chosen: see `TableSource`.
    """

    def __init__(self, reader: MdsShards, fingerprint: str, chosen: Mapping[str, Chosen]):
        super().__init__(reader.root, fingerprint, chosen)
        self._reader = reader
        self._encodings = dict(reader.shards[0].columns)

    def __len__(self) -> int:
        return len(self._reader)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._reader.places.shards()

    def where(self, i: int) -> str:
        """See `TableSource`."""
        return self._reader.where(i)

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        tops = {name: name if name in self._encodings else name.split(".")[0] for name in theirs}
        values = {}
        for name, content in self._reader.values(i, set(tops.values())).items():
            try:
                values[name] = decode(content, self._encodings[name])
            except UnicodeDecodeError as error:
                raise BadRecord(NOT_UTF8, f"{self.where(i)}, {name}: {error}") from None
            except (ValueError, OverflowError) as error:
                raise BadRecord(
                    "record cannot be read",
                    f"{self.where(i)}, {name}: no {self._encodings[name]} ({error})",
                ) from None
        return {
            name: values[top] if name == top else nested(values, name.split("."))
            for name, top in tops.items()
        }
