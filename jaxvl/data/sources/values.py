"""Values that others wrote, as values of our kinds."""

from __future__ import annotations

import ast
import base64
import binascii
import collections
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxvl.config.errors import shown
from jaxvl.data import text_files
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Kind

# First bytes of pictures and sounds.
_IMAGE_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",
)
_AUDIO_STARTS = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
# The same in base64: JPEG, PNG, GIF, WebP.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
_SHORTEST_BASE64 = 64
# Kinds that one column may mix -> the kind of the column.
_TOGETHER: dict[frozenset[str], Kind] = {
    frozenset({"text", "texts"}): "texts",
    frozenset({"int", "float"}): "float",
    frozenset({"int", "float", "array"}): "array",
    frozenset({"image", "frames"}): "frames",
}
NOT_UTF8 = "text is not UTF-8"
OTHER_KIND = "value is of another kind"


def media_kind(content: bytes) -> Kind | None:
    """`image` or `audio` by the first bytes; None for anything else."""
    if content.startswith(_IMAGE_STARTS) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP"):
        return "image"
    if content.startswith(b"BM") and content[6:10] == bytes(4):
        return "image"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        return "image"
    if content.startswith(_AUDIO_STARTS) or (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
        return "audio"
    return None


def kind_of(value: object) -> Kind | None:
    """The kind that a value is of; None where it is of none, or does not tell, as NaN does not."""
    if is_missing(value, "text"):
        return None
    if isinstance(value, bool):
        return "int"
    for kind, types in (
        ("text", str),
        ("int", (int, np.integer)),
        ("float", (float, np.floating)),
        ("array", np.ndarray),
    ):
        if isinstance(value, types):
            return kind
    if isinstance(value, bytes):
        return media_kind(value)
    if isinstance(value, (list, tuple)) and value:
        return _kind_of_list(value)
    return None


def _kind_of_list(values: Sequence[object]) -> Kind | None:
    kept = [value for value in values if value is not None]
    if kept and all(isinstance(value, str) for value in kept):
        return "texts"
    if kept and all(isinstance(value, bytes) and media_kind(value) == "image" for value in kept):
        return "frames"
    try:
        return "array" if kept and np.asarray(kept).dtype.kind in "biuf" else None
    except ValueError:  # lists of unequal lengths
        return None


def common_kind(kinds: Iterable[Kind | None]) -> Kind | None:
    """One kind for a column whose values are of several: that of most of them, where they do not go
    together; else None."""
    found = collections.Counter(kind for kind in kinds if kind is not None)
    if len(found) > 1:
        for together, kind in _TOGETHER.items():
            if set(found) <= together:
                return kind
    most = found.most_common(1)
    return most[0][0] if most and 2 * most[0][1] > found.total() else None


def is_missing(value: object, kind: Kind) -> bool:
    """Whether a value stands for none: None, and NaN, which pandas writes for it, where the kind is
    not one of floats."""
    if value is None:
        return True
    return (
        kind not in ("float", "array")
        and isinstance(value, (float, np.floating))
        and bool(np.isnan(value))
    )


def nested(value: object, path: Sequence[str]) -> object | None:
    """The value under keys of objects and numbers of lists, from the outside in; None where it is
    not there."""
    for name in path:
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, (list, tuple)) and _is_place(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10


def named(record: Mapping[str, object], name: str) -> object | None:
    """The value of a key, or else of the part that a dotted name means; None where there is
    none."""
    return record[name] if name in record else nested(record, name.split("."))


def as_value(value: object, kind: Kind, where: str, classes: ClassSet | None = None) -> object:
    """A value as its column's kind has it.

    Raises:
      BadRecord: it is of another kind, no UTF-8, or outside of the classes.
    """
    if kind in ("image", "audio"):
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        raise _other(value, kind, where)
    if kind in ("text", "texts"):
        return _text(value, where) if kind == "text" else _texts(value, where)
    if kind == "frames":
        if isinstance(value, (list, tuple)) and all(isinstance(frame, bytes) for frame in value):
            return list(value)
        raise _other(value, kind, where)
    if kind == "array":
        return _array(value, where)
    number = _number(value, kind, where)
    if kind == "class" and classes is not None and not 0 <= number < len(classes):
        raise BadRecord("class is not known", f"{where}: class {number} of {len(classes)}")
    return number


def _text(value: object, where: str) -> str:
    if isinstance(value, bytes):
        try:
            return text_files.decode(value)
        except UnicodeDecodeError as error:
            raise BadRecord(NOT_UTF8, f"{where}: {error}") from None
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _text(value[0], where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _other(value, "text", where)
    if not value.isascii():
        _check_surrogates(value, where)
    return value


def _check_surrogates(text: str, where: str) -> None:
    """Raises BadRecord for half a character, which JSON can hold as an escape."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(NOT_UTF8, f"{where}: {error}") from None


def _texts(value: object, where: str) -> list[str]:
    if isinstance(value, str):
        value = list_in_text(value) or [value]
    if isinstance(value, bytes):
        value = [value]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise _other(value, "texts", where)
    return [_text(part, where) for part in value if not is_missing(part, "text")]


def list_in_text(text: str) -> list[str] | None:
    """Texts of a list that was written as one text, in JSON or as Python prints it; None for any
    other text."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return value
    return None


def _array(value: object, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = None
    if array is None or array.dtype.kind not in "biuf":
        raise _other(value, "array", where)
    return array


def _number(value: object, kind: Kind, where: str) -> int | float:
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bytes, str)):
        text = _text(value, where).strip()
        try:
            return float(text) if kind == "float" else int(text)
        except ValueError:
            raise BadRecord("number cannot be read", f"{where}: {shown(text)}") from None
    if kind == "float" and isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    raise _other(value, kind, where)


def _other(value: object, kind: str, where: str) -> BadRecord:
    text = f"{len(value):,} bytes" if isinstance(value, (bytes, bytearray)) else shown(value)
    return BadRecord(
        OTHER_KIND, f"{where}: {text} is no {kind}; say in kinds what the column holds"
    )


def embedded(text: str) -> bytes | None:
    """The content of a data URI or of a picture in base64; None for any other text.

    Raises:
      ValueError: it is cut short or damaged.
    """
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("a data URI without base64")
    elif len(text) >= _SHORTEST_BASE64 and text.startswith(_BASE64_STARTS):
        body = text
    else:
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
