"""A text of a record, as token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxvl.aliases import HostArrays, Node
from jaxvl.config import Range, Tokens, check
from jaxvl.data.cache import Cache
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, Field, RowShape, match
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Record, Source
from jaxvl.data.text_augment import TextAugment
from jaxvl.data.tokenizers import Tokenizer

DRAWS = 10  # uniform numbers that the choice of one text may use
Texts = tuple[
    tuple[float, tuple[tuple[str, ...], ...]], ...
]  # weight, and texts of each column, of entries that the record has


@FIELDS.register("caption")
@dataclasses.dataclass(frozen=True)
class Caption(Field):
    """Fills NAME int32 [B, T], or [B, N, T].

    A row draws one of the columns by weight, then one of its texts. Columns that a record lacks
    give their weight to the others: within a pattern first. Two fields of one column are two views
    of a text.

    Attributes:
      columns: of texts: a name, several names, or name -> weight. `name/*` stands for all columns
        whose name begins so, which share its weight equally; a column that is named by itself is
        not among them.
      length: tokens T of one text.
      count: texts N of a row, drawn each on its own (two may be equal); more than one are for
        models that read them (imp).
      different: the N texts are different ones: all of a record's texts where it has N, and some of
        them twice where it has fewer.
      joined: of a column that holds lists, a caption has 1 to this many different texts, joined
        with ", ".
      augment: how the words of a text are changed, anew in every row.
      template: what is made of a text `{}` before it is encoded, such as an instruction in front of
        it; as evaluators' option of that name.
    """

    columns: dict[str, float] = dataclasses.field(default_factory=lambda: {"text": 1.0})
    length: Tokens = 64
    count: Annotated[int, Range(1, 1_024)] = 1
    different: bool = False
    joined: Annotated[int, Range(1, DRAWS - 2)] = 1
    augment: TextAugment = TextAugment()
    template: str = "{}"

    @classmethod
    def before_resolving(cls, node: Node) -> Node:
        """Columns without weights weigh the same."""
        return {**node, "columns": _weighted(node["columns"])} if "columns" in node else node

    def __post_init__(self):
        object.__setattr__(self, "columns", _weighted(self.columns))
        check(bool(self.columns), "columns", "must name at least one column")
        weights = list(self.columns.values())
        check(
            min(weights) >= 0 and sum(weights) > 0,
            "columns",
            f"the weights {weights} must be >= 0, and one of them > 0",
        )
        check(self.length >= 3, "length", f"{self.length!r} must be >= 3 tokens")
        check(self.count >= 1, "count", f"{self.count!r} must be >= 1")
        check(
            1 <= self.joined <= DRAWS - 2, "joined", f"{self.joined!r} must be in 1 … {DRAWS - 2}"
        )
        check(
            not self.different or self.joined == 1,
            "different",
            f"True is for single texts; joined is {self.joined!r}",
        )
        check(
            self.template.count("{}") == 1,
            "template",
            f"{self.template!r} must hold '{{}}' once, where the text goes",
        )

    @property
    def draws(self) -> int:
        """See `Field`."""
        return self.augmented_at + self.count * self.augment.changes

    @property
    def augmented_at(self) -> int:
        """Draws before those of the texts' changes."""
        return DRAWS * self.count

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        shape = (self.length,) if self.count == 1 else (self.count, self.length)
        return {name: RowShape(shape, np.int32)}

    def inputs(self, name: str) -> dict[str, str]:
        """See `Field`."""
        return {name: "text"}

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """See `Field`."""
        return [tuple(name for names, _ in self.matched(source) for name in names)]

    def matched(self, source: Source) -> list[tuple[list[str], float]]:
        """The columns of each entry of `columns` that counts, and their weight. Raises
        ConfigError."""
        named = {name for name in self.columns if "*" not in name}
        found = []
        for pattern, weight in self.columns.items():
            if weight == 0:
                continue
            names = match(source, pattern, ("text", "texts"), "columns")
            found.append(([name for name in names if name == pattern or name not in named], weight))
        return found

    def reader(self, name: str, source: Source, context: Context) -> CaptionReader:
        """See `Field`."""
        return CaptionReader(name, self, self.matched(source), context)


class CaptionReader:
    """The host half of `Caption`; see `base.Reader`."""

    def __init__(
        self,
        name: str,
        config: Caption,
        groups: Sequence[tuple[list[str], float]],
        context: Context,
    ):
        self._name = name
        self._config = config
        self._groups = groups
        self._encode = TextEncoder(context.tokenizer, config.length, context.cache)
        self.columns = tuple(column for columns, _ in groups for column in columns)
        self.key = ("caption", *((tuple(columns), weight) for columns, weight in groups))

    def load(self, record: Record) -> Texts | None:
        """The record's texts, by columns that share a weight."""
        found = []
        for columns, weight in self._groups:
            texts = texts_of(record, columns)
            if texts:
                found.append((weight, texts))
        return tuple(found) or None

    def write(self, out: HostArrays, row: int, value: Texts, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        config = self._config
        target = out[self._name][row].reshape(config.count, config.length)
        left = value
        for i in range(config.count):
            text = choose(left, config.joined, draws[DRAWS * i : DRAWS * (i + 1)])
            said = text
            if config.augment.changes:
                said = config.augment(text, draws[config.augmented_at + i])
            target[i] = self.tokens(said)
            if config.different:
                left = without(left, text) or value

    def tokens(self, text: str) -> np.ndarray:
        """Token ids int32 [T] of a text in its template."""
        return self._encode(self._config.template.replace("{}", text))


class TextEncoder:
    """Token ids int32 [T] of single texts, kept in the cache."""

    def __init__(self, tokenizer: Tokenizer, length: int, cache: Cache):
        self._tokenizer = tokenizer
        self._length = length
        self._cache = cache

    def __call__(self, text: str) -> np.ndarray:
        key = (self._length, text)
        ids = self._cache.get(key)
        if ids is None:
            ids = self._tokenizer.encode([text], self._length)[
                0
            ].copy()  # a view would keep the whole array
            self._cache.put(key, ids)
        return ids


def texts_of(record: Record, columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The record's texts in each of some columns that has any; empty ones are none. Raises
    BadRecord for a value that is no text."""
    found = []
    for column in columns:
        value = record.get(column)
        if value is None:
            continue
        texts = value if isinstance(value, (list, tuple)) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise BadRecord(
                    "caption is no text", f"column {column!r} holds {type(text).__name__}"
                )
        kept = tuple(text for text in texts if text and not text.isspace())
        if kept:
            found.append(kept)
    return tuple(found)


def choose(texts: Texts, joined: int, draws: Sequence[float]) -> str:
    """One of a record's texts, or several of one column, joined; `draws` are `DRAWS` uniform
    numbers in [0, 1)."""
    point = draws[0] * sum(weight for weight, _ in texts)
    weight, columns = texts[0]
    for following in texts[1:]:
        if point < weight:
            break
        point -= weight
        weight, columns = following
    # Within its entry the point is uniform, so it chooses the column as well.
    column = int(point / weight * len(columns))
    options = columns[min(column, len(columns) - 1)]
    if joined == 1 or len(options) == 1:
        return options[int(draws[1] * len(options))]
    rest = list(options)
    picked = []
    for draw in draws[2 : 2 + min(1 + int(draws[1] * joined), len(rest))]:
        picked.append(rest.pop(int(draw * len(rest))))
    return ", ".join(picked)


def without(texts: Texts, taken: str) -> Texts:
    """A record's texts but for one."""
    left = []
    for weight, columns in texts:
        kept = [tuple(text for text in column if text != taken) for column in columns]
        left.append((weight, tuple(column for column in kept if column)))
    return tuple((weight, columns) for weight, columns in left if columns)


def _weighted(columns: Any) -> Any:
    """Column -> weight, of a name or several names as well; anything else is left for the schema to
    refuse."""
    if isinstance(columns, str):
        return {columns: 1.0}
    if isinstance(columns, (list, tuple)) and all(isinstance(name, str) for name in columns):
        return dict.fromkeys(columns, 1.0)
    return columns
