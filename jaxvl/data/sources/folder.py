"""A folder of pictures, in the order of their paths.

    source = dict(name="folder", path="/data/pictures")                      # text: NAME.txt beside NAME.jpg
    source = dict(name="folder", path="/data/imagenet/val", classes="folder")  # class: the folder
    that a picture is in

Three kinds of text or class, which may come together:
  - `NAME.txt` beside `NAME.jpg` is the column `text` (img2dataset's layout "files");
  - `classes="folder"`: the column `class_label` is the place of the picture's top folder among all
    of them, sorted, as torchvision's ImageFolder has it; `classes="integer"`: the folder's name is
    the number itself, as in ImageNet-V2;
  - `metadata.jsonl` or `metadata.csv` in the folder gives further columns by `file_name`, as
    Hugging Face's imagefolder.

Hidden files and folders are left out. Other files, links that lead out of the folder and links in a
circle are counted. Where there is metadata, a picture without a row of it is left out and counted,
too.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxvl import paths
from jaxvl.config import PathText, check
from jaxvl.data import text_files
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord, causes
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import ABSENT, Column, Log, Record, Source
from jaxvl.data.sources.folder_metadata import FILES, Metadata, read_metadata
from jaxvl.data.sources.media import MediaFolder, is_below
from jaxvl.data.sources.table import column_array
from jaxvl.data.sources.values import NOT_UTF8

PICTURES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".avif",
    ".jp2",
    ".jxl",
)
LARGEST_INTEGER = 2**31 - 1  # that a folder's name may be
NO_PICTURE = "no picture"
NO_ROW = "picture without a row of metadata"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
      path: of the folder.
      names: of the pictures, from the folder, in order.
      sizes: file -> bytes, of all files.
      texts: picture -> file with its text.
      left_out: cause -> files that are in no record.
    """

    path: str
    names: list[str]
    sizes: dict[str, int]
    texts: dict[str, str]
    left_out: collections.Counter[str]


class Labels(NamedTuple):
    """The class of every picture, int64 [n], and what the numbers mean where that is known."""

    numbers: np.ndarray
    classes: ClassSet | None


@SOURCES.register("folder")
@dataclasses.dataclass(frozen=True)
class Folder:
    """See the module's text.

    Attributes:
      path: the folder, local or remote.
      classes: "folder" or "integer": the column `class_label`; None: there is none.
      columns, kinds: of the metadata file, as of the source `jsonl`.
    """

    path: PathText
    classes: Literal["folder", "integer"] | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)

    def open(self, log: Log = print) -> FolderSource:
        """Raises ConfigError at one of its fields; DataError where the metadata cannot be read."""
        check(paths.is_folder(paths.as_path(self.path)), "path", f"no folder {self.path!r}")
        listing = _list(self.path)
        check(len(listing.names) > 0, "path", f"{self.path!r} holds no pictures{_told(listing)}")
        # The classes are those of all pictures, whether or not they have metadata.
        labels = _labels(listing.names, self.classes, self.path)
        metadata = read_metadata(
            self.path, listing.names, listing.sizes, self.columns, self.kinds, log
        )
        if metadata is not None:
            listing, labels = _with_rows(listing, labels, metadata)
        if listing.left_out:
            log(f"{self.path}: {len(listing.names):,} pictures{_told(listing)}")
        return FolderSource(listing, labels, metadata)


def _told(listing: Listing) -> str:
    return f" (left out: {causes(listing.left_out)})" if listing.left_out else ""


def _list(path: str) -> Listing:
    left_out: collections.Counter[str] = collections.Counter()
    sizes = dict(_remote_files(path) if paths.is_remote(path) else _local_files(path, left_out))
    names = [name for name in sizes if name.lower().endswith(PICTURES)]
    names.sort(key=lambda name: ("/" in name, name.split("/")))  # those in no folder first
    beside = {os.path.splitext(name)[0]: name for name in sizes if name.lower().endswith(".txt")}
    texts = {name: beside[stem] for name in names if (stem := os.path.splitext(name)[0]) in beside}
    used = {*names, *texts.values()}
    others = sum(name not in used and name.rpartition("/")[2] not in FILES for name in sizes)
    if others:
        left_out[NO_PICTURE] += others
    return Listing(path, names, sizes, texts, left_out)


def _local_files(root: str, left_out: collections.Counter[str]) -> Iterator[tuple[str, int]]:
    """(path from the root, bytes) of all files. A link is followed where it stays inside, and never
    in a circle."""
    real_root = os.path.realpath(root)
    todo = [("", (real_root,))]
    while todo:
        below, above = todo.pop()
        for entry in sorted(os.scandir(os.path.join(root, below)), key=lambda entry: entry.name):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else None
            inside = real or os.path.join(above[-1], entry.name)
            if real is not None and not is_below(real, real_root):
                left_out["link that leads out of the folder"] += 1
            elif entry.is_dir() and inside in above:
                left_out["link in a circle"] += 1
            elif entry.is_dir():
                todo.append((name, (*above, inside)))
            elif entry.is_file():
                yield name, entry.stat().st_size
            else:
                left_out["link to nothing" if entry.is_symlink() else "no regular file"] += 1


def _remote_files(root: str) -> Iterator[tuple[str, int]]:
    for name, size in paths.sizes_below(paths.as_path(root)).items():
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, size


def _labels(names: Sequence[str], how: str | None, path: str) -> Labels | None:
    """Raises ConfigError where a picture is in no folder, or the folder's name is no number."""
    if how is None:
        return None
    loose = [name for name in names if "/" not in name]
    check(
        not loose,
        "classes",
        f"{how!r}: {path!r} holds {loose[0]!r} outside of any folder" if loose else "",
    )
    tops = [name.split("/")[0] for name in names]
    folders = sorted(set(tops))
    if how == "folder":
        places = {folder: place for place, folder in enumerate(folders)}
        return Labels(
            np.array([places[top] for top in tops], np.int64), ClassSet({"en": tuple(folders)})
        )
    wrong = [
        folder
        for folder in folders
        if not (folder.isascii() and folder.isdigit() and int(folder) <= LARGEST_INTEGER)
    ]
    check(
        not wrong,
        "classes",
        f"'integer': the folder {wrong[0]!r} of {path!r} is no number; must be 0, 1, 2 …"
        if wrong
        else "",
    )
    return Labels(np.array([int(top) for top in tops], np.int64), None)


def _with_rows(
    listing: Listing, labels: Labels | None, metadata: Metadata
) -> tuple[Listing, Labels | None]:
    """Only the pictures that the metadata names."""
    kept = np.array([name in metadata.rows for name in listing.names], bool)
    left_out = listing.left_out + metadata.left_out
    if not kept.all():
        left_out[NO_ROW] += int((~kept).sum())
    names = [name for name in listing.names if name in metadata.rows]
    if labels is not None:
        labels = labels._replace(numbers=labels.numbers[kept])
    return dataclasses.replace(listing, names=names, left_out=left_out), labels


class FolderSource(Source):
    """Pictures of a folder. A shard is a top folder.

    Its fingerprint is of the names and sizes of pictures and texts, the classes and the metadata.
    No picture is read for it.

    Args:
      listing: the files.
      labels: None: there is no column `class_label`.
      metadata: None: there is none.
    """

    def __init__(self, listing: Listing, labels: Labels | None, metadata: Metadata | None):
        self.name = listing.path
        self._names = listing.names
        self._texts = {name: listing.texts[name] for name in listing.names if name in listing.texts}
        self._labels = None if labels is None else labels.numbers
        self._metadata = metadata
        self._left_out = dict(listing.left_out)
        self._media = MediaFolder(listing.path)
        self.columns = {"image": Column("image")}
        if self._texts:
            self.columns["text"] = Column("text", optional=len(self._texts) < len(self._names))
        if labels is not None:
            self.columns["class_label"] = Column("class", classes=labels.classes)
        if metadata is not None:
            self.columns |= metadata.columns
        self.columns["file"] = Column("text")
        self.fingerprint = self._digest(listing.sizes)

    def _digest(self, sizes: Mapping[str, int]) -> str:
        rows = [] if self._metadata is None else [self._metadata.rows[name] for name in self._names]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        for name in self._names:
            digest.update(
                json.dumps([name, sizes[name], sizes.get(self._texts.get(name, ""), 0)]).encode()
            )
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        record = {}
        for name in self.columns:
            value = self._value(i, name) if columns is None or name in columns else None
            if value is not None:
                record[name] = value
        return record

    def _value(self, i: int, name: str) -> object | None:
        file = self._names[i]
        if self._of_metadata(name):
            return self._metadata.value(file, name)
        if name == "image":
            return self._media.read(file, "image", f"{self.name.rstrip('/')}/{file}")
        if name == "text":
            return self._text(file)
        return file if name == "file" else int(self._labels[i])

    def _of_metadata(self, name: str) -> bool:
        return self._metadata is not None and name in self._metadata.columns

    def _text(self, file: str) -> str | None:
        beside = self._texts.get(file)
        if beside is None:
            return None
        content = self._media.read(beside, "text", f"{self.name}, {beside}")
        try:
            return text_files.decode(content).removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise BadRecord(NOT_UTF8, f"{self.name}, {beside}: {error}") from None

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if self._of_metadata(name):
            return self._metadata_column(name)
        if name == "class_label":
            return self._labels
        return column_array(self._names, "text") if name == "file" else None

    def _metadata_column(self, name: str) -> np.ndarray | None:
        kind = self.columns[name].kind
        if kind not in ABSENT:
            return None
        return column_array([self._metadata.cheap_value(file, name) for file in self._names], kind)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if self._of_metadata(name):
            return np.array(
                [self._metadata.cheap_value(file, name) is not None for file in self._names], bool
            )
        if name == "text" and self._texts:
            return np.array([file in self._texts for file in self._names], bool)
        return super().present(name)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        sizes: dict[str, int] = {}
        for name in self._names:
            top = name.split("/")[0] if "/" in name else ""
            sizes[top] = sizes.get(top, 0) + 1
        return np.array(list(sizes.values()), np.int64)

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`."""
        return self._left_out
