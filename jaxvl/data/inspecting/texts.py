"""Figures of texts."""

from __future__ import annotations

import collections
import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxvl.data.preparing.words import normalized, words
from jaxvl.data.sources.table import NAMES

NO_TEXT = frozenset(
    {"none", "null", "na", "n/a", "nan", "-", "undefined"}
)  # what tools write for a text that is not there
# Columns whose texts name a record and say nothing of it, and how the names of such columns end.
NAMING = (
    "key",
    "__key__",
    "url",
    "__url__",
    "id",
    "uid",
    "uuid",
    "file",
    "file_name",
    "filename",
    "path",
    "filepath",
    "sha256",
    "md5",
)
NAMING_ENDS = ("_url", "_id", "_path", "_file", "_hash")
NAMES_LOOKED_AT = 1000
LETTERS_LOOKED_AT = 200  # of a text, to tell its script
SHOWN = 5  # most common texts
LONGEST_SHOWN = 60  # characters
PERCENTILES = (0, 5, 50, 95, 100)


@dataclasses.dataclass(frozen=True)
class TextFigures:
    """Figures of the texts of a column.

    Attributes:
      texts: how many.
      characters, words: at PERCENTILES.
      scripts: script of most letters of a text -> share of the texts.
      duplicates: share of texts that an earlier one equals, normalised.
      common: the most common texts that occur more than once, with how often.
      empty: texts of nothing but spaces.
      no_text: texts as "None", "null", "NA".
      broken: texts with U+FFFD, NUL or lone surrogates.
    """

    texts: int
    characters: tuple[float, ...]
    words: tuple[float, ...]
    scripts: dict[str, float]
    duplicates: float
    common: list[tuple[str, int]]
    empty: int
    no_text: int
    broken: int


def text_figures(texts: Sequence[str]) -> TextFigures:
    """Figures of at least one text."""
    alike = collections.Counter(normalized(text) for text in texts)
    scripts = collections.Counter(script(text) for text in texts)
    common = [(_cut(text), n) for text, n in alike.most_common(SHOWN) if n > 1]
    return TextFigures(
        texts=len(texts),
        characters=_percentiles([len(text) for text in texts]),
        words=_percentiles([len(words(text)) for text in texts]),
        scripts={name: n / len(texts) for name, n in scripts.most_common()},
        duplicates=1 - len(alike) / len(texts),
        common=common,
        empty=sum(not text.strip() for text in texts),
        no_text=sum(text.strip().lower() in NO_TEXT for text in texts),
        broken=sum(is_broken(text) for text in texts),
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1].rstrip()}…"


def only_name(column: str, texts: Sequence[str]) -> bool:
    """Whether the texts of a column only name their records, as keys, addresses and paths do: by
    the column's name, or because each is one word of ASCII with a digit or a slash in it."""
    name = column.lower().replace(".", "/").split("/")[-1]
    if name in NAMES["text"]:
        return False
    if name in NAMING or name.endswith(NAMING_ENDS):
        return True
    return all(_is_code(text) for text in texts[:NAMES_LOOKED_AT])


def _is_code(text: str) -> bool:
    one_word = text.isascii() and len(text.split()) == 1
    return one_word and any(letter.isdigit() or letter == "/" for letter in text)


def script(text: str) -> str:
    """Script of most of a text's letters, in lower case, `latin`; `none` for a text without
    letters."""
    found: collections.Counter[str] = collections.Counter()
    for letter in text[:LETTERS_LOOKED_AT]:
        if letter.isalpha():
            name = unicodedata.name(letter, "unknown")
            found[
                "chinese or japanese"
                if name.startswith(("CJK", "HIRAGANA", "KATAKANA"))
                else name.split()[0].lower()
            ] += 1
    return found.most_common(1)[0][0] if found else "none"


def is_broken(text: str) -> bool:
    return any(letter in "\0\ufffd" or 0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def _percentiles(values: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))
