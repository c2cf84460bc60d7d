"""Numbers of a record: its class, its group of duplicates, a figure, an array."""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
import unicodedata
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxvl.aliases import ColumnValue, HostArrays
from jaxvl.config import Range, check
from jaxvl.config.errors import shown
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, Field, RowShape, match
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Kind, Record, Source

LARGEST = float(np.finfo(np.float32).max)


class _ColumnField(Field):
    """A field of one column; the subclass says which kinds, and what becomes of a value."""

    column: str
    kinds: tuple[Kind, ...]

    def convert(self, value: ColumnValue) -> ColumnValue:
        """What is written into the row. Raises BadRecord."""
        return value

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """See `Field`."""
        return [tuple(match(source, self.column, self.kinds, "column"))]

    def reader(self, name: str, source: Source, context: Context) -> ColumnReader:
        """See `Field`."""
        match(source, self.column, self.kinds, "column")
        return ColumnReader(name, self)


class ColumnReader:
    """The host half of a field of one column; see `base.Reader`."""

    def __init__(self, name: str, config: _ColumnField):
        self._name = name
        self._config = config
        self.columns = (config.column,)
        self.key = ("column", config)

    def load(self, record: Record) -> ColumnValue | None:
        """The converted value. Raises BadRecord."""
        value = record.get(self._config.column)
        return None if value is None else self._config.convert(value)

    def write(self, out: HostArrays, row: int, value: ColumnValue, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        out[self._name][row] = value


@FIELDS.register("label")
@dataclasses.dataclass(frozen=True)
class Label(_ColumnField):
    """Fills NAME int32 [B]: a class.

    Attributes:
      column: of classes or integers.
    """

    column: str = "class_label"

    kinds = ("class", "int")

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape((), np.int32)}

    def convert(self, value: ColumnValue) -> int:
        """See `_ColumnField`."""
        number = whole(value)
        if number is None:
            raise BadRecord(
                "class is no whole number", f"column {self.column!r} holds {shown(value)}"
            )
        if not -(2**31) <= number < 2**31:
            raise BadRecord(
                "class is no number of 32 bits", f"column {self.column!r} holds {shown(value)}"
            )
        return number

    def classes(self, source: Source) -> int | None:
        """How many classes there are; None where the source does not say."""
        known = source.columns[self.column].classes
        return None if known is None else len(known)


@FIELDS.register("group")
@dataclasses.dataclass(frozen=True)
class Group(_ColumnField):
    """Fills NAME int32 [B]: rows with equal values are the same thing, so that objectives need not
    take them for negatives.

    An integer or class is taken as it is. Of a text it is a hash of its letters, whatever their
    case, width and spacing; of a picture, of its bytes. Two of the 65,536 rows of a batch get the
    same 32 bits by chance in every second batch.

    Attributes:
      column: of classes, integers, texts or pictures.
    """

    column: str = "text"

    kinds = ("class", "int", "text", "texts", "image")

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape((), np.int32)}

    def convert(self, value: ColumnValue) -> int:
        """See `_ColumnField`."""
        number = whole(value)
        if number is not None:
            return number if -(2**31) <= number < 2**31 else hash_of(str(number))
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not isinstance(value, bytes) and not all(isinstance(text, str) for text in texts):
            raise BadRecord(
                "group is no number and no text", f"column {self.column!r} holds {shown(value)}"
            )
        return hash_of(value)


def whole(value: ColumnValue) -> int | None:
    """The integer that a value is, of whatever type; None where it is none."""
    if isinstance(value, (float, np.floating)) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, (int, np.integer, np.bool_)) else None


def hash_of(value: str | Sequence[str] | bytes) -> int:
    """32 bits, as int32: of a text as `same_text` has it, of a list of texts, or of bytes."""
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, (list, tuple)):
        data = "\0".join(map(same_text, value)).encode(errors="surrogatepass")
    else:
        data = same_text(value).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little", signed=True)


def same_text(text: str) -> str:
    """What two captions must share to be the same caption: letters, whatever their case, width and
    spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@FIELDS.register("number")
@dataclasses.dataclass(frozen=True)
class Number(_ColumnField):
    """Fills NAME float32 [B].

    Attributes:
      column: of numbers.
    """

    column: str

    kinds = ("float", "int", "class")

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape((), np.float32)}

    def convert(self, value: ColumnValue) -> float:
        """See `_ColumnField`."""
        if not isinstance(value, (numbers.Real, np.bool_)):
            raise BadRecord("number is no number", f"column {self.column!r} holds {shown(value)}")
        try:
            found = float(value)
        except OverflowError:
            found = float("inf")
        if not abs(found) <= LARGEST:
            raise BadRecord("number is not finite", f"column {self.column!r} holds {shown(value)}")
        return found


@FIELDS.register("array")
@dataclasses.dataclass(frozen=True)
class Array(_ColumnField):
    """Fills NAME float32 [B, *shape]: features that were computed before.

    Attributes:
      column: of arrays.
      shape: of one.
    """

    column: str
    shape: tuple[Annotated[int, Range(1, 2**31 - 1)], ...]

    kinds = ("array",)

    def __post_init__(self):
        check(
            bool(self.shape) and min(self.shape) >= 1, "shape", f"{self.shape!r} must be sizes >= 1"
        )

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape(self.shape, np.float32)}

    def convert(self, value: ColumnValue) -> np.ndarray:
        """See `_ColumnField`."""
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            raise BadRecord(
                "array has another shape", f"column {self.column!r} holds {error}"
            ) from None
        if array.shape != self.shape or array.dtype.kind not in "fiub":
            raise BadRecord(
                "array has another shape",
                f"column {self.column!r} holds {array.dtype} {array.shape}, not {self.shape}",
            )
        if not (np.abs(array, dtype=np.float64) <= LARGEST).all():
            raise BadRecord("array is not finite", f"column {self.column!r}")
        return array.astype(np.float32)
