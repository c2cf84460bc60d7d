"""Columns of tables that others wrote: which of theirs is which of ours, and their values as ours.

Ours are `image`, `audio`, `text` and `class_label`, found by the names that teams give them, unless
`columns` says which is which; all other columns keep their names.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

import numpy as np

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import ABSENT, Column, Kind, Log, Record, Source
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.values import as_value, is_missing

# Our name -> names that teams use, the preferred one first; upper and lower case are the same.
NAMES = {
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes"),
    "audio": ("audio", "flac", "wav", "mp3", "ogg", "sound"),
    "text": (
        "text",
        "caption",
        "txt",
        "title",
        "captions",
        "texts",
        "alt_text",
        "alt",
        "description",
        "sentence",
        "sentences",
    ),
    "class_label": ("class_label", "label", "cls", "class", "target"),
}
PATH_NAMES = (
    "image",
    "filepath",
    "file_name",
    "filename",
    "image_path",
    "img_path",
    "imgpath",
    "image_file",
    "path",
    "file",
)
KINDS_OF = {
    "image": ("image",),
    "audio": ("audio",),
    "text": ("text", "texts"),
    "class_label": ("class", "int"),
}
MOST_PARSED = 5_000_000  # records up to which a column is read from all of them


@dataclasses.dataclass(frozen=True)
class Found:
    """A column as it is there.

    Attributes:
      kind: what its values are; None: nothing that is read.
      type: in the format's own words, for messages.
      optional: whether records may lack it.
      classes: of kind `class`.
      refused: why it is not read, where the reason is not its type.
    """

    kind: Kind | None
    type: str
    optional: bool = True
    classes: ClassSet | None = None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One of our columns.

    Attributes:
      theirs: its name there.
      column: its type.
      by_path: its values are paths of files, not their content.
    """

    theirs: str
    column: Column
    by_path: bool = False


def choose_columns(
    found: Mapping[str, Found],
    columns: Mapping[str, str],
    kinds: Mapping[str, str],
    paths_too: bool,
    where: str,
    log: Log,
) -> dict[str, Chosen]:
    """Our name -> column of theirs.

    Args:
      found: all columns that are there; parts of a struct by `name.part`.
      columns: our name -> theirs, as configured; empty: all of them, under our names where they are
        known.
      kinds: our name -> kind, as configured.
      paths_too: whether a text of a known name may be the path of a picture.
      where: which file, for messages.

    Raises:
      ConfigError: at `columns` or `kinds`.
    """
    named = dict(columns) or _automatic(found, paths_too)
    chosen = {}
    for ours, theirs in named.items():
        field = f"columns.{ours}"
        listed = f"columns of {where}: {_listed(found)}"
        check(
            theirs in found, field, f"no column {theirs!r}{nearest(theirs, list(found))} ({listed})"
        )
        check(not (columns and found[theirs].refused), field, f"{theirs!r} {found[theirs].refused}")
        chosen[ours] = _chosen(
            ours,
            theirs,
            found[theirs],
            kinds.get(ours),
            explicit=bool(columns),
            paths_too=paths_too,
        )
    for name in kinds:
        check(
            name in named,
            f"kinds.{name}",
            f"is the kind of no column{nearest(name, list(named))} (columns: {', '.join(named)})",
        )
    known = {ours: column for ours, column in chosen.items() if column is not None}
    if not known:
        raise ConfigError(
            "columns",
            f"{where} has no column that is known to be a picture, text, number or array "
            f"(there are: {_listed(found)})",
        )
    if not columns:
        _log_left_out(found, known, where, log)
    return known


def _automatic(found: Mapping[str, Found], paths_too: bool) -> dict[str, str]:
    """Our name -> theirs, without a config."""
    lower = {name.lower(): name for name in reversed(found)}
    named: dict[str, str] = {}
    for ours, names in NAMES.items():
        for name in names:
            theirs = lower.get(name)
            if theirs is not None and found[theirs].kind in KINDS_OF[ours]:
                named[ours] = theirs
                break
    if paths_too and "image" not in named:
        for name in PATH_NAMES:
            theirs = lower.get(name)
            if theirs is not None and found[theirs].kind == "text":
                named["image"] = theirs
                break
    taken = set(named.values())
    for name, column in found.items():
        if name not in taken and name not in named and column.kind is not None and "." not in name:
            named[name] = name
    return named


def _chosen(
    ours: str, theirs: str, found: Found, kind: str | None, explicit: bool, paths_too: bool
) -> Chosen | None:
    valid = get_args(Kind)
    check(
        kind is None or kind in valid,
        f"kinds.{ours}",
        f"{kind!r} is not valid; must be one of {', '.join(valid)}{nearest(kind, valid)}",
    )
    if kind is None:
        kind = found.kind
        if ours == "class_label" and kind == "int":
            kind = "class"
        if ours in ("image", "audio") and kind == "text":
            kind = ours
    if kind is None:
        check(
            not explicit,
            f"columns.{ours}",
            f"what {theirs!r} ({found.type}) holds is not known; say it in kinds.{ours} "
            f"(image, audio, text …)",
        )
        return None
    by_path = kind in ("image", "audio") and found.kind == "text"
    check(
        not by_path or paths_too,
        f"columns.{ours}",
        f"{theirs!r} holds texts; if they are paths of files, say in which folder: images='…'",
    )
    classes = found.classes if kind == "class" else None
    return Chosen(theirs, Column(kind, found.optional, classes), by_path)


def _listed(found: Mapping[str, Found]) -> str:
    return ", ".join(f"{name} ({column.type})" for name, column in found.items()) or "none"


def _log_left_out(
    found: Mapping[str, Found], known: Mapping[str, Chosen], where: str, log: Log
) -> None:
    read = {column.theirs for column in known.values()}
    tops = {name.partition(".")[0] for name in read}
    left = [
        f"{name} ({column.refused or column.type})"
        for name, column in found.items()
        if "." not in name and name not in read | tops
    ]
    if left:
        log(f"{where}: not read: {', '.join(left)}")


class TableSource(Source):
    """A source whose records are rows of a table.

    Args:
      name, fingerprint: see `base.Source`.
      chosen: our name -> column.
      media: where the files lie that a row names by their paths.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        chosen: Mapping[str, Chosen],
        media: MediaFolder | None = None,
    ):
        self.name = name
        self.fingerprint = fingerprint
        self.chosen = dict(chosen)
        self.columns = {ours: each.column for ours, each in chosen.items()}
        self._media = media

    @abc.abstractmethod
    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """Some values of a row as they are there; None, or no entry, where it has none.

        Raises:
          BadRecord, DataError: as `read`.
        """

    def where(self, i: int) -> str:
        """A record's place, for messages."""
        return f"{self.name}, record {i}"

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = [name for name in self.columns if columns is None or name in columns]
        row = self.row(i, {self.chosen[name].theirs for name in wanted})
        record = {}
        where = self.where(i)
        for name in wanted:
            value = self._value(
                row.get(self.chosen[name].theirs), self.chosen[name], f"{where}, {name}"
            )
            if value is not None:
                record[name] = value
        return record

    def _value(self, value: object, chosen: Chosen, where: str) -> object | None:
        kind = chosen.column.kind
        if is_missing(value, kind):
            return None
        if isinstance(value, str) and kind in ("image", "audio"):
            if not value:
                raise BadRecord(f"no {kind}", f"{where}: the path is empty")
            if self._media is None:
                raise BadRecord(
                    f"no {kind}",
                    f"{where}: is the path {value[:200]!r}; say in which folder: images='…'",
                )
            return self._media.read(value, kind, where)
        return as_value(value, kind, where, chosen.column.classes)


class ParsedTable(TableSource):
    """A table whose rows are cheap to read without their pictures: whole columns come from reading
    them all, up to `MOST_PARSED`."""

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        values = self._all_values(name)
        return None if values is None else column_array(values, self.columns[name].kind)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        known = super().present(name)
        values = self._all_values(name) if known is None else None
        return known if values is None else np.array([value is not None for value in values], bool)

    def _all_values(self, name: str) -> list[object | None] | None:
        """None of a record without a value; None in all where the column is not a cheap one, or
        there are too many records."""
        if (
            name not in self.columns
            or self.columns[name].kind not in ABSENT
            or len(self) > MOST_PARSED
        ):
            return None
        theirs = self.chosen[name].theirs
        kind = self.columns[name].kind
        values = []
        for i in range(len(self)):
            try:
                value = self.row(i, [theirs])[theirs]
                values.append(None if is_missing(value, kind) else as_value(value, kind, name))
            except BadRecord:  # `read` says why
                values.append(None)
        return values


def column_array(values: Sequence[object | None], kind: Kind) -> np.ndarray:
    """Values of a cheap column as an array; `ABSENT` where a record has none."""
    filled = [ABSENT[kind] if value is None else value for value in values]
    if kind == "text":
        out = np.empty(len(filled), object)
        out[:] = filled
        return out
    return np.array(filled, np.float64 if kind == "float" else np.int64)
