"""The texts of all classes, the same in every row: what a picture is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import Count, Tokens, check
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, Field, RowShape, match
from jaxvl.data.sources.base import Record, Source


@FIELDS.register("class_texts")
@dataclasses.dataclass(frozen=True)
class ClassTexts(Field):
    """Fills NAME int32 [B, C, T] with the token ids of the classes' texts, and NAME_class int32 [B,
    C] with their numbers, ascending. The hook of the same name deals them to the rows.

    The classes are those that occur in the source.

    Attributes:
      count: C, how many they are.
      column: of classes.
      language: of their names.
      template: what is made of a name `{}`.
      length: tokens T of a text.
    """

    count: Count
    column: str = "class_label"
    language: str = "en"
    template: str = "a photo of a {}."
    length: Tokens = 64

    def __post_init__(self):
        check(self.length >= 3, "length", f"{self.length!r} must be >= 3 tokens")
        check(
            self.template.count("{}") == 1,
            "template",
            f"{self.template!r} must hold '{{}}' once, where the name goes",
        )

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {
            name: RowShape((self.count, self.length), np.int32),
            f"{name}_class": RowShape((self.count,), np.int32),
        }

    def reader(self, name: str, source: Source, context: Context) -> ClassTextsReader:
        """See `Field`."""
        match(source, self.column, ("class",), "column")
        classes = source.columns[self.column].classes
        languages = [] if classes is None else list(classes.names)
        check(
            self.language in languages,
            "language",
            f"{self.language!r}: the classes of {self.column!r} have no names in it (there are: "
            f"{', '.join(languages) or 'none'})",
        )
        numbers = source.column(self.column)
        check(
            numbers is not None,
            "column",
            f"{self.column!r} of {source.name} can only be read record by record; must be a column "
            f"that is known without reading",
        )
        found = np.unique(np.asarray(numbers))
        found = found[found >= 0].astype(np.int32)
        check(
            len(found) == self.count,
            "count",
            f"{self.count!r} must be {len(found)}, the classes that occur in {source.name}",
        )
        names = classes.names[self.language]
        texts = [self.template.replace("{}", names[number]) for number in found]
        return ClassTextsReader(name, context.tokenizer.encode(texts, self.length), found)


class ClassTextsReader:
    """The host half of `ClassTexts`; see `base.Reader`."""

    def __init__(self, name: str, tokens: np.ndarray, numbers: np.ndarray):
        self._name = name
        self._tokens = tokens
        self._numbers = numbers
        self.columns = ()
        self.key = ("class_texts", name)

    def load(self, record: Record) -> bool:
        """Every record has them."""
        return True

    def write(self, out: HostArrays, row: int, value: bool, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        out[self._name][row] = self._tokens
        out[f"{self._name}_class"][row] = self._numbers
