"""Columns of a sample of named members: which member a column is, and how its bytes become a value.

A column is written as endings of members, the first that is there wins: `"jpg;png;webp"`,
`"txt;caption"`. Keys of a JSON member follow a colon, `"json:caption;alt"`, or stand in brackets,
`"json[caption];json[about][title];txt"`; the first that is not empty wins. A pattern, `"*.jpg"`,
means all members that match, as frames in the order of their numbers. `"__key__"` and `"__url__"`
are the sample's key and its shard.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from jaxvl.config import check, nearest
from jaxvl.config.errors import ConfigError
from jaxvl.data import text_files
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Kind
from jaxvl.data.sources.values import NOT_UTF8, as_value, nested

INFO = ("__key__", "__url__")
IMAGES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "avif",
    "jxl",
    "jp2",
    "heic",
)
AUDIO = ("flac", "wav", "mp3", "ogg", "opus", "m4a", "aac")
TEXTS = ("txt", "text", "caption", "transcript", "title", "alt")
CLASSES = ("cls", "cls2", "class", "label", "index", "inx", "id")
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt", "joblib", "ckpt")
KINDS = {
    **dict.fromkeys(IMAGES, "image"),
    **dict.fromkeys(AUDIO, "audio"),
    **dict.fromkeys(TEXTS, "text"),
    **dict.fromkeys(CLASSES, "class"),
    "npy": "array",
}

_PART = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")  # ENDING or ENDING[KEY][KEY]
_NUMBERED = re.compile(r"(\d{0,18})(\D*)")
_KEY = re.compile(r"\[([^\[\]]+)\]")


class Choice(NamedTuple):
    """One place that a value may come from.

    Attributes:
      ending: of the member.
      path: keys of a JSON member, from the outside in; empty: the member itself is the value.
    """

    ending: str
    path: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MemberColumn:
    """Where the values of a column come from.

    Attributes:
      choices: the preferred one first; one of INFO alone for what is known of every sample.
      kind: of the values; None: what the first records of the source hold decides.
    """

    choices: tuple[Choice, ...]
    kind: Kind | None

    @functools.cached_property
    def info(self) -> str | None:
        """`__key__` or `__url__`, where that is the value."""
        ending = self.choices[0].ending
        return ending if ending in INFO else None

    @functools.cached_property
    def pattern(self) -> str | None:
        """Pattern of endings, where the value is all members that match."""
        ending = self.choices[0].ending
        return ending if "*" in ending else None

    @functools.cached_property
    def has_keys(self) -> bool:
        """Whether a value comes from a key of a JSON member."""
        return any(choice.path for choice in self.choices)

    def members(self, there: Collection[str]) -> list[str]:
        """Endings of the members that have to be read, of those that are there."""
        if self.pattern:
            return sorted(fnmatch.filter(there, self.pattern), key=_by_number)
        wanted = []
        for ending, path in self.choices:
            if ending in there:
                wanted.append(ending)
                if not path:
                    break
        return wanted


def _by_number(ending: str) -> list[tuple[int, str]]:
    """Order in which 2.jpg comes before 10.jpg."""
    return [(int(digits or 0), text) for digits, text in _NUMBERED.findall(ending)]


def parse_columns(columns: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, MemberColumn]:
    """The columns of a config.

    Args:
      columns: name -> endings, or an ending and keys.
      kinds: name -> kind, where the ending does not tell it.

    Raises:
      ConfigError: one cannot be used; its key is `columns.NAME` or `kinds.NAME`.
    """
    check(len(columns) > 0, "columns", "is empty; must name at least one column")
    for name, kind in kinds.items():
        field = f"kinds.{name}"
        check(
            name in columns,
            field,
            f"is the kind of no column{nearest(name, list(columns))} (columns: "
            f"{', '.join(columns)})",
        )
        valid = [k for k in get_args(Kind) if k != "frames" or "*" in columns[name]]
        check(
            kind in valid,
            field,
            f"{kind!r} is not valid; must be one of {', '.join(valid)}{nearest(kind, valid)}",
        )
    return {
        name: _parse(text, f"columns.{name}", kinds.get(name)) for name, text in columns.items()
    }


def _parse(text: str, field: str, kind: str | None) -> MemberColumn:
    choices = _choices(text, field)
    if choices[0].ending in INFO:
        return MemberColumn(choices, "text")
    if any("*" in choice.ending for choice in choices):
        last = choices[0].ending.rpartition(".")[2]
        check(
            len(choices) == 1 and last in IMAGES and not choices[0].path,
            field,
            f"{text!r}: a pattern must be one of pictures, such as '*.jpg'",
        )
        check(
            kind in (None, "frames"),
            field,
            f"{text!r}: all members that match are frames, not {kind}",
        )
        return MemberColumn(choices, "frames")
    for ending, path in choices:
        last = ending.rpartition(".")[2]
        check(
            last not in PICKLES,
            field,
            f"{ending!r} members hold pickled objects, which may run code when they are read; "
            f"write them as npy",
        )
        check(last != "npz", field, "'npz' members hold several arrays; write each as npy")
        check(not path or last == "json", field, f"{text!r}: only json members have keys")
        check(
            bool(path) or last != "json",
            field,
            f"{text!r}: which key of the json? write '{ending}:caption'",
        )
    found = {KINDS.get(ending.rpartition(".")[2]) for ending, path in choices if not path}
    if kind is None and None in found:
        raise ConfigError(
            field,
            f"what {text!r} members hold is not known; say it in kinds (image, audio, text, "
            f"texts, class, …)",
        )
    mixed = " and ".join(sorted(map(str, found)))
    check(
        kind is not None or len(found) < 2,
        field,
        f"{text!r} mixes {mixed}; say in kinds what is meant",
    )
    return MemberColumn(choices, kind or next(iter(found), None))


def _choices(text: str, field: str) -> tuple[Choice, ...]:
    before, colon, after = text.partition(":")
    parts = _parts(before)
    keys = _parts(after)
    check(
        len(parts) > 0 and (not colon or len(keys) > 0),
        field,
        f"{text!r} names no members; write 'jpg;png' or 'json:caption'",
    )
    choices = []
    for part in parts:
        match = _PART.fullmatch(part)
        check(
            match is not None,
            field,
            f"{part!r} is no ending of a member, with or without [keys]; write 'jpg;png' or "
            f"'json[caption]'",
        )
        path = tuple(_KEY.findall(match[2]))
        check(not (colon and path), field, f"{text!r} has keys both in brackets and behind a colon")
        ending = match[1].lower()
        choices += [Choice(ending, (key,)) for key in keys] if colon else [Choice(ending, path)]
    has_info = any(choice.ending in INFO for choice in choices)
    check(
        not has_info or (len(choices) == 1 and not choices[0].path),
        field,
        f"{text!r} must be {' or '.join(INFO)} alone",
    )
    return tuple(choices)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip().removeprefix(".") for part in text.split(";") if part.strip())


# --------------------------------------------------------------------------------------------------
# Values


def decode(content: bytes, kind: Kind, where: str) -> object:
    """The value of a member. Raises BadRecord."""
    if kind == "array":
        return _array(content, where)
    if kind != "texts":
        return as_value(content, kind, where)
    try:
        return [line for line in text_files.read_lines(content) if line.strip()]
    except UnicodeDecodeError as error:
        raise BadRecord(NOT_UTF8, f"{where}: {error}") from None


def _array(content: bytes, where: str) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header raises many types
        raise BadRecord(
            "array cannot be read", f"{where}: {type(error).__name__}: {error}"
        ) from None


def parse_json(content: bytes, where: str) -> Mapping[str, object]:
    """The object in a JSON member. Raises BadRecord."""
    try:
        value = json.loads(text_files.decode(content))
    except (ValueError, RecursionError) as error:
        raise BadRecord(
            "json cannot be read", f"{where}: {type(error).__name__}: {error}"[:300]
        ) from None
    if not isinstance(value, dict):
        raise BadRecord(
            "json cannot be read", f"{where}: is of type {type(value).__name__}, not an object"
        )
    return value


def at_path(found: object, path: Sequence[str]) -> object | None:
    """The value under keys of objects and numbers of lists; None where it is not there or empty."""
    value = nested(found, path)
    empty = isinstance(value, (str, list, dict)) and not value
    blank = isinstance(value, str) and not value.strip()
    return None if empty or blank else value
