"""Pictures in tar shards. `open_shards` is the only way in; the reader behind it may be another one."""

from __future__ import annotations

import functools
import hashlib
import io
import pathlib
import tarfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Record, Source
from jaxvl.evals.benchmarks.files import as_objects

# Suffixes of pictures in the order in which CLIP_benchmark prefers them.
PICTURES = ("webp", "png", "jpg", "jpeg")


class Member(NamedTuple):
    """A small member of every sample that becomes a column held in memory.

    Attributes:
      suffix: of the member.
      column: type of the column.
      parse: bytes -> value. Raises ValueError where it cannot.
    """

    suffix: str
    column: Column
    parse: Callable[[bytes], Any]


def parse_label(content: bytes) -> int:
    label = int(content.decode("utf-8"))
    if abs(label) >= 2**31:
        raise ValueError(f"{label} is no label")
    return label


def parse_array(content: bytes) -> np.ndarray:
    """An array in numpy's format; one that holds pickled objects is refused."""
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(str(error)) from None


def parse_captions(content: bytes) -> list[str]:
    """Captions, one a line; as CLIP_benchmark's reader, a line also ends at U+2028 and its like."""
    return content.decode("utf-8").splitlines()


def open_shards(name: str, files: Sequence[pathlib.Path], members: Mapping[str, Member]) -> Source:
    """Records of tar shards in their order: `image`, and a column for each of `members`.

    Raises DataError where a shard is missing or is no whole tar.
    """
    return _TarImages(name, files, members)


class _Sample(NamedTuple):
    file: int
    key: str
    suffix: str | None
    offset: int
    size: int
    values: dict[str, Any]


class _TarImages(Source):
    """See `open_shards`. Headers and small members are read once, at the start; a picture when it is asked for."""

    def __init__(self, name: str, files: Sequence[pathlib.Path], members: Mapping[str, Member]):
        self.name = name
        self._files = [pathlib.Path(file) for file in files]
        self._samples: list[_Sample] = []
        self._shards = []
        for number, file in enumerate(self._files):
            before = len(self._samples)
            self._samples += _samples_of(number, file, members)
            self._shards.append(len(self._samples) - before)
        self.columns = {"image": Column("image")}
        self.columns |= {key: Column(m.column.kind, True, m.column.classes) for key, m in members.items()}
        self._open = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = threading.local()

    def __len__(self) -> int:
        return len(self._samples)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the samples' keys and sizes, and of the values of the small members."""
        digest = hashlib.sha256()
        for sample in self._samples:
            values = {key: _plain(value) for key, value in sample.values.items()}
            digest.update(f"{sample.key}\0{sample.suffix}\0{sample.size}\0{values}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def shards(self) -> np.ndarray:
        return np.array(self._shards, np.int64)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        sample = self._samples[i]
        wanted = self.columns if columns is None else columns
        record = {key: value for key, value in sample.values.items() if key in wanted}
        if "image" in wanted:
            record["image"] = self._read_picture(sample)
        return record

    def _read_picture(self, sample: _Sample) -> bytes:
        path = self._files[sample.file]
        if sample.suffix is None:
            raise BadRecord("record is incomplete", f"{path}, {sample.key}: no picture (.{', .'.join(PICTURES)})")
        try:
            file = self._file(sample.file)
            file.seek(sample.offset)
            content = file.read(sample.size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read any more ({error})") from None
        if len(content) < sample.size:
            raise BadRecord("record cannot be read", f"{path}, {sample.key}.{sample.suffix}: cut short")
        return content

    def _file(self, number: int) -> Any:
        """The shard, opened once in each thread."""
        held = getattr(self._open, "held", None)
        if held is None or held[0] != number:
            self._open.held = held = (number, open(self._files[number], "rb"))
        return held[1]

    def column(self, name: str) -> np.ndarray | None:
        if name == "image" or name not in self.columns:
            return None
        return as_objects([sample.values.get(name) for sample in self._samples])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _samples_of(number: int, path: pathlib.Path, members: Mapping[str, Member]) -> list[_Sample]:
    """Samples of a shard in the order of their first members. A key ends at the first dot of the base name."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not member.isreg() or not dot or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                found.setdefault(key, {}).setdefault(suffix.lower(), (member.offset_data, member.size))
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: is no whole tar file ({error})") from None
    with open(path, "rb") as file:
        return [_sample(number, key, parts, members, file) for key, parts in found.items()]


def _sample(number: int, key: str, parts: Mapping[str, tuple[int, int]], members: Mapping[str, Member], file: Any) -> _Sample:
    values = {}
    for column, member in members.items():
        if member.suffix not in parts:
            continue
        offset, size = parts[member.suffix]
        file.seek(offset)
        try:
            values[column] = member.parse(file.read(size))
        except ValueError:
            continue  # the record lacks it, and whoever needs it counts that
    suffix = next((suffix for suffix in PICTURES if suffix in parts), None)
    offset, size = parts[suffix] if suffix else (0, 0)
    return _Sample(number, key, suffix, offset, size, values)
