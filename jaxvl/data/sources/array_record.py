"""ArrayRecord files, whose records are maps in msgpack or `tf.train.Example`s.

Format: https://github.com/google/array_record.

    source = dict(name="array_record", files="/data/{00000..00099}.array_record",
    columns=dict(image="jpg", text="caption"))

A map in msgpack is column -> value, as `jaxvl.data.prepare` writes it; an array is a map of
`dtype`, `shape` and `data`. Pickles, which others write as well, are not read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgpack
import numpy as np
from array_record.python import array_record_module

from jaxvl import paths
from jaxvl.config import PathText, check
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.file_patterns import expand_files
from jaxvl.data.sources.other_formats import other_format
from jaxvl.data.sources.places import Places, name_of
from jaxvl.data.sources.remembered import edges_digest, key_of, read_part, remembered, states_of
from jaxvl.data.sources.table import Chosen, Found, TableSource, choose_columns
from jaxvl.data.sources.tf_example import parse_example
from jaxvl.data.sources.values import common_kind, kind_of, named
from jaxvl.paths import FileState

MOST_OPEN = 64  # files
HEAD = 64  # bytes from the start that tell another format
LOOK_AGAIN = 1.0  # seconds after which a file's state is asked for again
READ_AT_ONCE = 16  # files whose records are counted
LOOKED_AT = 32  # records whose values say what a column holds
OPTIONS = "readahead_buffer_size:0"  # records are read by number
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@SOURCES.register("array_record")
@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """See the module's text.

    Attributes:
      files: names with braces, globs or folders; `::` joins several.
      columns, kinds: as of the source `parquet`.
      payload: what a record is; "auto": what the first one is.
    """

    files: PathText | tuple[PathText, ...]
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    payload: Literal["auto", "msgpack", "example"] = "auto"

    def open(self, log: Log = print) -> ArrayRecordSource:
        """Raises ConfigError at one of its fields; DataError for a file that is cut short."""
        files = expand_files(self.files, "files", ".array_record")
        for file in files:
            check(
                not paths.is_remote(file),
                "files",
                f"{file!r} is remote, but ArrayRecord files are read from local disks; copy it",
            )
        states = states_of(files)

        def find() -> list[list[Any]]:
            with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
                return list(pool.map(count_records, files, states))

        counted = remembered("array_record", key_of("array_record", files, states), find, log)
        sizes = [records for records, _ in counted]
        check(
            sum(sizes) > 0,
            "files",
            f"{files[0]!r}{' and all others' if len(files) > 1 else ''} has no records",
        )
        reader = ArrayRecordFiles(files, states, sizes)
        payload = _payload(reader.content(0), files[0]) if self.payload == "auto" else self.payload
        found = _find_columns(reader, payload)
        chosen = choose_columns(found, self.columns, self.kinds, False, files[0], log)
        digest = hashlib.sha256("".join(edges for _, edges in counted).encode()).hexdigest()
        return ArrayRecordSource(reader, payload, digest, chosen)


def count_records(file: str, state: FileState) -> list[int | str]:
    """Records of a file, and a digest of its start and end. Raises DataError."""
    reader = _open(file)
    try:
        return [reader.num_records(), edges_digest(file, state.size)]
    except Exception as error:
        raise _not_readable(file, error) from None
    finally:
        reader.close()


def _open(file: str) -> array_record_module.ArrayRecordReader:
    try:
        reader = array_record_module.ArrayRecordReader(file, options=OPTIONS)
        if not reader.ok():
            raise DataError("its index cannot be read")
        return reader
    except Exception as error:
        raise _not_readable(file, error) from None


def _not_readable(file: str, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    with contextlib.suppress(OSError):
        known = other_format(read_part(file, 0, HEAD))
        if known is not None:
            return DataError(f"{file}: {known}")
    return DataError(
        f"{file}: not a whole ArrayRecord file ({reason}); it was cut short, or is still "
        f"being written"
    )


class ArrayRecordFiles:
    """Records by number over many files, of which some stay open. Thread-safe; picklable.

    Attributes:
      files: their names.
      places: of the records.
    """

    def __init__(self, files: Sequence[str], states: Sequence[FileState], sizes: Sequence[int]):
        self.files = list(files)
        self._states = list(states)
        self.places = Places(sizes)
        self._lock = threading.Lock()
        self._looked: dict[int, float] = {}  # when a file's state was asked for
        self._open: collections.OrderedDict[int, array_record_module.ArrayRecordReader] = (
            collections.OrderedDict()
        )

    def __reduce__(self):
        return ArrayRecordFiles, (self.files, self._states, self.places.sizes.tolist())

    def where(self, i: int) -> str:
        """A record's place, for messages."""
        file, number = self.places[i]
        return f"{self.files[file]}, record {number}"

    def content(self, i: int) -> bytes:
        """Raises BadRecord where the record is damaged; DataError where the file is gone or has
        changed."""
        file, number = self.places[i]
        reader = self._reader(file)
        try:
            return reader.read([number])[0]
        except Exception as error:
            raise BadRecord(
                "record cannot be read", f"{self.where(i)}: {type(error).__name__}: {error}"
            ) from None

    def _reader(self, file: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            reader = self._open.get(file)
            now = time.monotonic()
            if reader is None or now - self._looked.get(file, 0.0) > LOOK_AGAIN:
                self._check_same(file)
                self._looked[file] = now
            if reader is None:
                reader = self._open[file] = _open(self.files[file])
                while len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)  # closed once no thread reads from it any more
            self._open.move_to_end(file)
            return reader

    def _check_same(self, file: int) -> None:
        name = self.files[file]
        try:
            state = paths.file_state(name)
        except OSError:
            raise DataError(f"{name}: is not there any more") from None
        if state != self._states[file]:
            raise DataError(
                f"{name}: was replaced or is still being written; start again once it is whole"
            )


def _payload(content: bytes, file: str) -> Literal["msgpack", "example"]:
    """What a record is. Raises DataError."""
    try:
        if isinstance(msgpack.unpackb(content, raw=False, strict_map_key=True), dict):
            return "msgpack"
    except Exception:  # noqa: BLE001, S110 (msgpack raises many types for another format)
        pass
    try:
        if parse_example(content, file):
            return "example"
    except BadRecord:
        pass
    if content.startswith(PICKLES):
        raise DataError(
            f"{file}: its records are pickled objects, which may run code when they are read; "
            f"write them as msgpack"
        )
    raise DataError(f"{file}: its records are neither maps in msgpack nor tf.train.Example")


def _find_columns(reader: ArrayRecordFiles, payload: str) -> dict[str, Found]:
    """Columns by the values of some records, spread over all."""
    total = len(reader.places)
    kinds: dict[str, list[str | None]] = collections.defaultdict(list)
    examples: dict[str, object] = {}
    read = 0
    for i in sorted({int(i) for i in np.linspace(0, total - 1, LOOKED_AT)}):
        try:
            record = decode(reader.content(i), payload, "")
        except BadRecord:
            continue
        read += 1
        for name, value in _flat(record):
            kinds[name].append(kind_of_raw(value))
            examples.setdefault(name, value)
    if not read:
        raise DataError(f"{reader.files[0]}: none of {LOOKED_AT} records can be read")
    return {
        name: Found(common_kind(of), type(examples[name]).__name__) for name, of in kinds.items()
    }


def _flat(record: Mapping[str, object], before: str = "") -> list[tuple[str, object]]:
    """Values by dotted name."""
    out = []
    for name, value in record.items():
        out.append((f"{before}{name}", value))
        if isinstance(value, Mapping):
            out += _flat(value, f"{before}{name}.")
        elif isinstance(value, list) and common_kind([kind_of_raw(value)]) is None:
            out += [(f"{before}{name}.{i}", part) for i, part in enumerate(value)]
    return out


def kind_of_raw(value: object) -> str | None:
    """As `values.kind_of`, where texts may be bytes, as those of a `tf.train.Example` are."""
    kind = kind_of(value)
    if (
        kind is None
        and isinstance(value, list)
        and value
        and all(isinstance(part, bytes) for part in value)
    ):
        return "texts" if all(kind_of_raw(part) == "text" for part in value) else None
    if kind is not None or not isinstance(value, bytes):
        return kind
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "text" if "\0" not in text else None


def decode(content: bytes, payload: str, where: str) -> Mapping[str, object]:
    """Column -> value. Raises BadRecord."""
    if payload == "example":
        return parse_example(content, where)
    try:
        record = msgpack.unpackb(content, raw=False, object_hook=_array_of)
    except Exception as error:  # msgpack raises many types for one broken message
        raise BadRecord(
            "record cannot be read", f"{where}: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(record, dict):
        raise BadRecord(
            "record cannot be read", f"{where}: is of type {type(record).__name__}, not a map"
        )
    return record


def _array_of(value: dict[str, Any]) -> object:
    """The array that a map of `dtype`, `shape` and `data` is. Raises ValueError where they do not
    fit."""
    if set(value) != {"dtype", "shape", "data"} or not isinstance(value["data"], bytes):
        return value
    dtype = np.dtype(value["dtype"])
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return np.frombuffer(value["data"], dtype).reshape(value["shape"])


class ArrayRecordSource(TableSource):
    """Records of ArrayRecord files. A shard is a file.

    Args:
      reader: of the files.
      payload: "msgpack" or "example".
      fingerprint: see `base.Source`.
      chosen: see `TableSource`.
    """

    def __init__(
        self, reader: ArrayRecordFiles, payload: str, fingerprint: str, chosen: Mapping[str, Chosen]
    ):
        super().__init__(name_of(reader.files), fingerprint, chosen)
        self._reader = reader
        self._payload = payload

    def __len__(self) -> int:
        return len(self._reader.places)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._reader.places.shards()

    def where(self, i: int) -> str:
        """See `TableSource`."""
        return self._reader.where(i)

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        record = decode(self._reader.content(i), self._payload, self.where(i))
        return {name: named(record, name) for name in theirs}
