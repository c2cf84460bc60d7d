"""Which source reads a path: by the names of its files and, of single files, their first bytes."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxvl import paths
from jaxvl.aliases import Leaf
from jaxvl.config import ConfigError, check, nearest, to_path
from jaxvl.data.sources.other_formats import packed

HEAD = 512  # bytes
MOST_LISTED = 5  # names in a message
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
NAMED_LIKE_FILES = (
    *PICTURES,
    ".tar",
    ".parquet",
    ".arrow",
    ".array_record",
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".mds",
    ".cls",
)
PICKLE = re.compile(rb"\x80[\x02-\x05]")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Names in a folder and in the folders in it, with `/` at the end of folders."""

    path: paths.Path
    names: tuple[str, ...]

    def has(self, pattern: str) -> bool:
        return any(fnmatch.fnmatch(name.lower(), pattern) for name in self.names)


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """A format that a single file shows.

    Attributes:
      source: that reads it.
      suffixes: of its names.
      magic: what a file begins with; `.` for any byte.
    """

    source: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes] | None
    key: str = "files"


FILES = (
    FileFormat("webdataset", (".tar",), re.compile(rb".{257}ustar", re.DOTALL)),
    FileFormat("parquet", (".parquet",), re.compile(rb"PAR1")),
    FileFormat("huggingface", (".arrow",), re.compile(rb"ARROW1|\xff\xff\xff\xff"), "path"),
    FileFormat("jsonl", (".jsonl", ".ndjson"), re.compile(rb"(\xef\xbb\xbf)?\s*\{")),
    FileFormat("array_record", (".array_record", ".arrayrecord"), None),
    FileFormat("csv", (".tsv", ".csv"), None),
)


@dataclasses.dataclass(frozen=True)
class FolderFormat:
    """A format that the names in a folder show. The first of the table that fits is taken.

    Attributes:
      source: that reads it.
      fits: whether a folder is of it.
      key: field of the source's config that takes the folder.
    """

    source: str
    fits: Callable[[Listing], bool]
    key: str


FOLDERS = (
    FolderFormat(
        "huggingface",
        lambda folder: folder.has("dataset_dict.json") or folder.has("state.json"),
        "path",
    ),
    FolderFormat(
        "tfds",
        lambda folder: folder.has("dataset_info.json") and folder.has("features.json"),
        "data_dir",
    ),
    FolderFormat("mds", lambda folder: folder.has("index.json") and folder.has("*.mds*"), "path"),
    FolderFormat("webdataset", lambda folder: folder.has("*.tar"), "files"),
    FolderFormat(
        "array_record",
        lambda folder: folder.has("*.array_record") or folder.has("*.arrayrecord"),
        "files",
    ),
    FolderFormat("parquet", lambda folder: folder.has("*.parquet"), "files"),
    FolderFormat("huggingface", lambda folder: folder.has("*.arrow"), "path"),
    FolderFormat(
        "folder", lambda folder: any(folder.has(f"*{suffix}") for suffix in PICTURES), "path"
    ),
    FolderFormat("jsonl", lambda folder: folder.has("*.jsonl"), "files"),
    FolderFormat("csv", lambda folder: folder.has("*.csv") or folder.has("*.tsv"), "files"),
)
# Folders of others that hold the data one level further down, as
# `data/train-00000-of-00001.parquet`.
INSIDE = ("*/*.tar", "*/*.parquet", "*/*.array_record", "*/*.arrow", "*/*.jsonl")


def recognise(text: str) -> dict[str, Leaf]:
    """Config of the source that reads a path, `{"name": …, KEY: path, …}`.

    Args:
      text: a file, a folder, or a pattern of files with braces or stars.

    Raises:
      ConfigError: there is nothing, or no source reads it; the message says what is there.
    """
    if re.search(r"[{}*?\[]|::", text):
        return _of_pattern(text)
    path = to_path(text, "PATH")
    if not paths.exists(path):
        raise ConfigError("PATH", f"{text!r} is not there{_near(path)}")
    return _of_folder(path) if paths.is_folder(path) else _of_file(path)


def _near(path: paths.Path) -> str:
    """A name like that of a path which is not there, in its folder."""
    if paths.is_remote(path) or not paths.is_folder(path.parent):
        return ""
    return nearest(path.name, [one.name for one in paths.list_folder(path.parent)])


def _of_pattern(text: str) -> dict[str, Any]:
    for form in FILES:
        if text.endswith(form.suffixes):
            return {"name": form.source, form.key: text}
    endings = ", ".join(suffix for form in FILES for suffix in form.suffixes)
    raise ConfigError(
        "PATH",
        f"{text!r} does not end in a known suffix ({endings}); name the source: --source=NAME "
        f"--source.files=…",
    )


def head_of(path: paths.Path) -> bytes:
    """First bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD)


def _of_file(path: paths.Path) -> dict[str, Any]:
    head = head_of(path)
    unreadable = packed(head)
    if PICKLE.match(head):
        unreadable = (
            "is a pickle, which may run code when it is read; write the records in another format"
        )
    check(unreadable is None, "PATH", f"{str(path)!r} {unreadable}")
    check(len(head) > 0, "PATH", f"{str(path)!r} is empty")
    check(
        not path.name.lower().endswith(PICTURES),
        "PATH",
        f"{str(path)!r} is one picture; name the folder that it is in",
    )
    if path.name == "index.json" and b"shards" in head:
        return {"name": "mds", "path": str(path.parent)}
    for form in FILES:
        named = path.name.lower().endswith(form.suffixes)
        if named and form.magic is not None and not form.magic.match(head):
            raise ConfigError(
                "PATH", f"{str(path)!r} is named as {form.source} but begins with {head[:16]!r}"
            )
        if named:
            return {"name": form.source, form.key: str(path), **_options(form.source, path, head)}
    for form in FILES:
        if form.magic is not None and form.magic.match(head):
            return {"name": form.source, form.key: str(path)}
    known = ", ".join(form.source for form in FILES)
    raise ConfigError("PATH", f"{str(path)!r} begins with {head[:16]!r}, which is none of {known}")


def _options(source: str, path: paths.Path, head: bytes) -> dict[str, Any]:
    if source != "csv":
        return {}
    first = head.splitlines()[0] if head.splitlines() else b""
    return {"delimiter": ","} if first.count(b",") > first.count(b"\t") else {}


def _of_folder(path: paths.Path) -> dict[str, Any]:
    listing = list_names(path)
    if (
        listing.has("dataset_info.json")
        and not listing.has("features.json")
        and not listing.has("state.json")
    ):
        listing = Listing(
            path, tuple(name for name in listing.names if name != "dataset_info.json")
        )
    for form in FOLDERS:
        if form.fits(listing):
            return {
                "name": form.source,
                form.key: str(path),
                **_folder_options(form.source, listing),
            }
    deeper = _one_level_down(listing)
    if deeper is not None:
        return deeper
    shown = ", ".join(listing.names[:MOST_LISTED]) or "nothing"
    known = ", ".join(dict.fromkeys(form.source for form in FOLDERS))
    raise ConfigError(
        "PATH", f"{str(path)!r} holds {shown}; none of the formats that are recognised ({known})"
    )


def list_names(path: paths.Path) -> Listing:
    """Names of a folder, sorted; folders end in `/`. Nothing below is read."""
    names = (f"{one.name}/" if _is_folder(one) else one.name for one in paths.list_folder(path))
    return Listing(path, tuple(names))


def _is_folder(path: paths.Path) -> bool:
    """Each question to an object store takes a while: there, what is named like a file is not
    asked."""
    if paths.is_remote(path) and path.name.lower().endswith(NAMED_LIKE_FILES):
        return False
    return paths.is_folder(path)


def _folder_options(source: str, listing: Listing) -> dict[str, Any]:
    if source == "huggingface" and listing.has("dataset_dict.json"):
        splits = json.loads(paths.read_text(listing.path / "dataset_dict.json")).get("splits", [])
        return {"split": splits[0]} if splits else {}
    if source == "csv":
        suffix = "*.tsv" if listing.has("*.tsv") else "*.csv"
        first = paths.list_folder(listing.path, suffix)[0]
        return {"files": str(listing.path / suffix), **_options("csv", first, head_of(first))}
    return {}


def _one_level_down(listing: Listing) -> dict[str, Any] | None:
    """For folders in the folder: one version of a TFDS dataset, `data/*.parquet`, classes as
    folders of pictures."""
    folders = [
        name.rstrip("/")
        for name in listing.names
        if name.endswith("/") and not name.startswith(".")
    ]
    for name in folders[:MOST_LISTED]:
        inner = list_names(listing.path / name)
        if inner.has("features.json") and inner.has("dataset_info.json"):
            return {"name": "tfds", "data_dir": str(listing.path / name)}
        for pattern in INSIDE:
            suffix = pattern.partition("/")[2]
            if inner.has(suffix):
                found: Mapping[str, Any] = _of_pattern(str(listing.path / pattern))
                return dict(found)
        if any(inner.has(f"*{suffix}") for suffix in PICTURES):
            return {"name": "folder", "path": str(listing.path), "classes": "folder"}
    return None
