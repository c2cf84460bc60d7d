"""Pictures in files, with columns that are held in memory; the text files beside them."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxvl.aliases import Json
from jaxvl.data.class_sets import read_json
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Record, Source
from jaxvl.data.text_files import read_lines

UP = 4  # folders above a set in which lists of all sets are looked for
# Suffixes of pictures, as torchvision's ImageFolder knows them, so that both count the same files.
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Values(NamedTuple):
    """A column held in memory: its type, and the value of every record (None: it has none)."""

    column: Column
    values: Sequence[object] | np.ndarray


class ImageFiles(Source):
    """One record for each picture file.

    Args:
      name: for messages.
      folder: which the files lie in.
      files: paths in `folder`, with `/`. One that is absolute or has `..` is not read.
      values: further columns.
      described_by: bytes that say what the columns hold, for the fingerprint.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        files: Sequence[str],
        values: Mapping[str, Values] | None = None,
        described_by: bytes = b"",
    ):
        self.name = name
        self._folder = folder
        self._files = list(files)
        self._values = dict(values or {})
        self._described_by = hashlib.sha256(described_by).hexdigest()
        self.columns = {
            "image": Column("image"),
            **{key: held.column for key, held in self._values.items()},
        }

    def __len__(self) -> int:
        return len(self._files)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of names and sizes of the files, and of what describes them."""
        digest = hashlib.sha256(self._described_by.encode())
        for file in self._files:
            path = self._folder / file
            size = path.stat().st_size if _is_below(file) and path.is_file() else -1
            digest.update(f"{file}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @property
    def pictures(self) -> str:
        """Equal for two sources of the same picture files in the same order."""
        digest = hashlib.sha256(f"{self._folder}\n".encode("utf-8", "surrogateescape"))
        digest.update("\n".join(self._files).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = self.columns if columns is None else columns
        record = {}
        for key, held in self._values.items():
            if key in wanted and held.values[i] is not None:
                record[key] = held.values[i]
        if "image" in wanted:
            record["image"] = self._read_picture(self._files[i])
        return record

    def _read_picture(self, file: str) -> bytes:
        if not _is_below(file):
            raise BadRecord("record cannot be read", f"{file!r} does not lie in {self._folder}")
        try:
            return (self._folder / file).read_bytes()
        except (OSError, ValueError) as error:
            raise BadRecord("record cannot be read", f"{self._folder / file}: {error}") from None

    def column(self, name: str) -> np.ndarray | None:
        held = self._values.get(name)
        if held is None:
            return None
        if isinstance(held.values, np.ndarray):
            return held.values
        return as_objects(held.values)


def as_objects(values: Sequence[object]) -> np.ndarray:
    """Values as an object array [n], lists included."""
    out = np.empty(len(values), object)
    for i, value in enumerate(values):
        out[i] = value
    return out


def _is_below(file: str) -> bool:
    parts = pathlib.PurePosixPath(file)
    return bool(file) and "\0" not in file and not parts.is_absolute() and ".." not in parts.parts


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out. Raises DataError where it
    cannot be listed."""
    return sorted(
        entry.name
        for entry in _entries(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def file_names(folder: pathlib.Path) -> list[str]:
    """Names of the files in a folder, sorted. Raises DataError where it cannot be listed."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_file())


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from None


def pictures_below(folder: pathlib.Path) -> list[str]:
    """Picture files in a folder and its folders, as paths with `/`, in the order of torchvision's
    ImageFolder."""
    found = []
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        inside = pathlib.Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in sorted(names) if is_picture(name)]
    return found


def by_class(folder: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Picture files of the class folders `classes`, and the place of each file's class in that
    list."""
    files = []
    labels = []
    for label, name in enumerate(classes):
        found = pictures_below(folder / name)
        files += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    return files, np.array(labels, np.int64)


def file_above(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """A file in a folder or one of the `UP` above it; None where there is none."""
    return next(
        (above / name for above in [folder, *folder.parents][: UP + 1] if (above / name).is_file()),
        None,
    )


def json_of(path: pathlib.Path) -> Json:
    """Content of a JSON file. Raises DataError."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from None


def bytes_of(path: pathlib.Path) -> bytes:
    """Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def lines_of(path: pathlib.Path) -> list[str]:
    """Lines of a UTF-8 text file. Raises DataError."""
    try:
        return read_lines(bytes_of(path))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def texts_in(value: Json, what: str) -> list[str]:
    """A list of texts. Raises DataError that begins with `what` for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{what} must be a list of texts, not {str(value)[:60]!r}")
    return value
