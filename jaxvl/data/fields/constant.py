"""The same in every row: an instruction, the number of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import Tokens, check
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, Field, RowShape
from jaxvl.data.sources.base import Record, Source


@FIELDS.register("constant")
@dataclasses.dataclass(frozen=True)
class Constant(Field):
    """Fills NAME float32 [B] with a number, or int32 [B, T] with the token ids of a text.

    Attributes:
      value: a number or a text.
      length: tokens T of a text.
    """

    value: float | str
    length: Tokens = 64

    def __post_init__(self):
        check(self.length >= 3, "length", f"{self.length!r} must be >= 3 tokens")

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {
            name: RowShape((self.length,), np.int32)
            if isinstance(self.value, str)
            else RowShape((), np.float32)
        }

    def reader(self, name: str, source: Source, context: Context) -> ConstantReader:
        """See `Field`."""
        if isinstance(self.value, str):
            return ConstantReader(name, context.tokenizer.encode([self.value], self.length)[0])
        return ConstantReader(name, np.float32(self.value))


class ConstantReader:
    """The host half of `Constant`; see `base.Reader`."""

    def __init__(self, name: str, value: np.ndarray | np.float32):
        self._name = name
        self._value = value
        self.columns = ()
        self.key = ("constant", name)

    def load(self, record: Record) -> np.ndarray | np.float32:
        """The value."""
        return self._value

    def write(
        self, out: HostArrays, row: int, value: np.ndarray | np.float32, draws: Sequence[float]
    ) -> None:
        """See `base.Reader`."""
        out[self._name][row] = value
