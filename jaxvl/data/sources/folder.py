"""A folder of pictures, in the order of their paths.

    source = dict(name="folder", path="/data/pictures")                      # text: NAME.txt beside NAME.jpg
    source = dict(name="folder", path="/data/imagenet/val", classes="folder")  # class: the folder that a picture is in

Three kinds of text or class, which may come together:
  - `NAME.txt` beside `NAME.jpg` is the column `text` (img2dataset's layout "files");
  - `classes="folder"`: the column `class_label` is the place of the picture's top folder among all of them, sorted, as
    torchvision's ImageFolder has it; `classes="integer"`: the folder's name is the number itself, as in ImageNet-V2;
  - `metadata.jsonl` or `metadata.csv` in the folder gives further columns by `file_name`, as Hugging Face's imagefolder.

Hidden files and folders are left out. Other files, links that lead out of the folder and links in a circle are counted.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxvl import paths
from jaxvl.config import PathText, check
from jaxvl.data import text_files
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord, DataError, causes
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Log, Record, Source
from jaxvl.data.sources.delimited import kind_of_texts
from jaxvl.data.sources.media import MediaFolder, is_below
from jaxvl.data.sources.table import ABSENT, Chosen, Found, choose_columns, column_array, nested
from jaxvl.data.sources.values import NOT_UTF8, as_value, common_kind, kind_of

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".jxl",
)  # fmt: skip
METADATA = ("metadata.jsonl", "metadata.csv")
LARGEST_INTEGER = 2**31 - 1  # that a folder's name may be


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
        folder = paths.as_path(self.path)
        check(paths.is_folder(folder), "path", f"no folder {self.path!r}")
        skipped: collections.Counter[str] = collections.Counter()
        sizes = dict(_remote_files(self.path)) if paths.is_remote(self.path) else dict(_local_files(self.path, skipped))
        names = [name for name in sizes if name.lower().endswith(PICTURES)]
        names.sort(key=lambda name: ("/" in name, name.split("/")))  # those in no folder first
        texts = {name for name in sizes if name.lower().endswith(".txt")}
        used = {name: text for name in names if (text := f"{os.path.splitext(name)[0]}.txt") in texts}
        others = len(sizes) - len(names) - len(set(used.values())) - sum(name in METADATA for name in sizes)
        skipped["no picture"] += max(others, 0)
        skipped = collections.Counter({cause: n for cause, n in skipped.items() if n})
        told = f" (left out: {causes(skipped)})" if skipped else ""
        check(len(names) > 0, "path", f"{self.path!r} holds no pictures{told}")
        if skipped:
            log(f"{self.path}: {len(names):,} pictures{told}")
        classes, labels = _classes(names, self.classes, self.path)
        rows = _metadata(self.path, sizes)
        _check_files(rows, sizes, self.path)
        found = _find_columns(rows)
        found.pop("file_name", None)
        chosen = choose_columns(found, self.columns, self.kinds, False, f"{self.path}'s metadata", log) if found else {}
        check(bool(found) or not self.columns, "columns", f"{self.path!r} has no {' or '.join(METADATA)} that would have columns")
        if rows:
            names = [name for name in names if name in rows]
            labels = None if labels is None else {name: labels[name] for name in names}
        return FolderSource(self.path, names, sizes, used, classes, labels, rows, chosen)


def _local_files(root: str, skipped: collections.Counter[str]) -> Iterator[tuple[str, int]]:
    """(path from the root, bytes) of all files. A link is followed where it stays inside, and never in a circle."""
    real_root = os.path.realpath(root)
    left = [("", (real_root,))]
    while left:
        below, above = left.pop()
        for entry in sorted(os.scandir(os.path.join(root, below)), key=lambda entry: entry.name):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else None
            if real is not None and not is_below(real, real_root):
                skipped["link that leads out of the folder"] += 1
            elif entry.is_dir():
                inside = real or os.path.join(above[-1], entry.name)
                if inside in above:
                    skipped["link in a circle"] += 1
                else:
                    left.append((name, (*above, inside)))
            elif not entry.is_file():
                skipped["link to nothing" if entry.is_symlink() else "no regular file"] += 1
            else:
                yield name, entry.stat().st_size


def _remote_files(root: str) -> Iterator[tuple[str, int]]:
    for file in paths.files_below(paths.as_path(root)):
        name = str(file)[len(root.rstrip("/")) + 1 :]
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, -1


def _classes(names: Sequence[str], how: str | None, path: str) -> tuple[ClassSet | None, dict[str, int] | None]:
    """The class set, and the class of every picture."""
    if how is None:
        return None, None
    loose = [name for name in names if "/" not in name]
    check(not loose, "classes", f"{how!r}: {path!r} holds {loose[0]!r} outside of any folder" if loose else "")
    folders = sorted({name.split("/")[0] for name in names})
    if how == "folder":
        places = {folder: place for place, folder in enumerate(folders)}
        return ClassSet({"en": tuple(folders)}), {name: places[name.split("/")[0]] for name in names}
    wrong = [folder for folder in folders if not (folder.isascii() and folder.isdigit() and int(folder) <= LARGEST_INTEGER)]
    check(not wrong, "classes", f"'integer': the folder {wrong[0]!r} of {path!r} is no number; must be 0, 1, 2 …" if wrong else "")
    return None, {name: int(name.split("/")[0]) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Metadata by file name


def _metadata(path: str, files: Collection[str]) -> dict[str, Mapping[str, object]]:
    """Picture -> its row of every metadata file in the folder or below; a file's names start from its own folder. Raises DataError."""
    rows: dict[str, Mapping[str, object]] = {}
    for name in sorted(files):
        before, _, last = name.rpartition("/")
        if last not in METADATA:
            continue
        file = f"{path.rstrip('/')}/{name}"
        content = paths.read_bytes(paths.as_path(file))
        for number, row in enumerate(_rows(content, file), 1):
            of = row.get("file_name")
            if not isinstance(of, str) or not of:
                raise DataError(f"{file}: row {number} has no 'file_name' (it has: {', '.join(map(str, row))})")
            rows[f"{before}/{of}" if before else of] = row
    return rows


def _rows(content: bytes, file: str) -> Iterator[Mapping[str, object]]:
    try:
        if file.endswith(".csv"):
            yield from _typed(list(csv.DictReader(io.StringIO(text_files.decode(content), newline=""))))
            return
        for number, line in enumerate(text_files.read_lines(content), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{file}:{number}: is no JSON object")
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 ({error})") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _typed(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Rows of a CSV file with numbers where all values of a column are such; an empty number is None."""
    typed: list[dict[str, object]] = [dict(row) for row in rows]
    for name in rows[0] if rows else ():
        kind = kind_of_texts(name, [row[name] for row in rows if row[name]])
        if kind in ("int", "float"):
            for row in typed:
                row[name] = as_value(row[name], kind, name) if row[name] else None
    return typed


def _check_files(rows: Mapping[str, object], files: Collection[str], path: str) -> None:
    if rows and not any(name in files for name in rows):
        first = next(iter(rows))
        raise DataError(f"{path}: none of the {len(rows):,} files that its metadata names is there, as {first!r}")


def _find_columns(rows: Mapping[str, Mapping[str, object]]) -> dict[str, Found]:
    values: dict[str, list[object]] = {}
    for row in rows.values():
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    found = {}
    for name, of in values.items():
        kind = common_kind(kind_of(value) for value in of)
        found[name] = Found(kind, str(kind), len(of) < len(rows))
    return found


class FolderSource(Source):
    """Pictures of a folder. A shard is a top folder.

    Args:
      path: the folder.
      names: of the pictures, from the folder, in order.
      sizes: file -> bytes; -1: not known.
      texts: picture -> file with its text.
      classes: what the labels mean.
      labels: picture -> class; None: no classes.
      rows: picture -> its metadata.
      chosen: columns of the metadata.
    """

    def __init__(
        self, path: str, names: Sequence[str], sizes: Mapping[str, int], texts: Mapping[str, str], classes: ClassSet | None,
        labels: Mapping[str, int] | None, rows: Mapping[str, Mapping[str, object]], chosen: Mapping[str, Chosen],
    ):  # fmt: skip
        self.name = path
        self._names = list(names)
        self._texts = dict(texts)
        self._chosen = dict(chosen)
        self._labels = None if labels is None else np.array([labels[name] for name in names], np.int64)
        self._rows = [rows[name] for name in names] if rows else []
        self._media = MediaFolder(path)
        self.columns = {"image": Column("image")}
        if self._texts:
            self.columns["text"] = Column("text", optional=len(self._texts) < len(names))
        if labels is not None:
            self.columns["class_label"] = Column("class", classes=classes)
        self.columns |= {name: each.column for name, each in chosen.items()}
        self.columns["file"] = Column("text")
        digest = hashlib.sha256(json.dumps(self._rows, sort_keys=True, default=str).encode())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        for name in names:
            digest.update(json.dumps([name, sizes[name], sizes.get(self._texts.get(name, ""), 0)]).encode())
        self.fingerprint = digest.hexdigest()

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
        where = f"{self.name.rstrip('/')}/{file}"
        if name in self._chosen:
            return self._of_row(i, name)
        if name == "image":
            return self._media.read(file, "image", where)
        if name == "text":
            return self._text(file)
        return file if name == "file" else int(self._labels[i])

    def _text(self, file: str) -> str | None:
        beside = self._texts.get(file)
        if beside is None:
            return None
        content = self._media.read(beside, "text", f"{self.name}, {beside}")
        try:
            return text_files.decode(content).removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise BadRecord(NOT_UTF8, f"{self.name}, {beside}: {error}") from None

    def _of_row(self, i: int, name: str) -> object | None:
        chosen = self._chosen[name]
        row = self._rows[i]
        value = row[chosen.theirs] if chosen.theirs in row else nested(row, chosen.theirs.split("."))
        if value is None:
            return None
        return as_value(value, chosen.column.kind, f"{self.name}, {self._names[i]}, {name}", chosen.column.classes)

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name == "class_label" and name not in self._chosen:
            return self._labels
        if name == "file":
            return column_array(self._names, "text")
        if name in self._chosen and self.columns[name].kind in ABSENT:
            return column_array([self._of_row(i, name) for i in range(len(self))], self.columns[name].kind)
        return None

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name == "text" and name not in self._chosen and self._texts:
            return np.array([file in self._texts for file in self._names], bool)
        if name in self._chosen:
            return np.array([self._of_row(i, name) is not None for i in range(len(self))], bool)
        return super().present(name)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        sizes: dict[str, int] = {}
        for name in self._names:
            top = name.rpartition("/")[0].split("/")[0]
            sizes[top] = sizes.get(top, 0) + 1
        return np.array(list(sizes.values()), np.int64)
