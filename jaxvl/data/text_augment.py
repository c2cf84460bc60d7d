"""Random changes of the words of a text."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from jaxvl.config import Range, check

Share = Annotated[float, Range(0.0, 1.0)]


@dataclasses.dataclass(frozen=True)
class TextAugment:
    """What is done to training texts (EDA, Wei & Zou 2019, arXiv 1901.11196, section 2, without its
    synonyms, which need a thesaurus).

    A text is changed in at most one way, which is drawn by `swap`, `delete` and `insert`; with what
    is left of 1 it stays as it is. Words are what spaces part. A text of one word stays.

    The improved baselines (Fini et al. 2023, arXiv 2305.08675; the release) have `swap=0.4`,
    `delete=0.2`, and synonyms in the other texts.

    Attributes:
      swap: probability that two words change places.
      delete: probability that words are left out; at least one stays.
      insert: probability that one of its words is said once more, at a random place. EDA inserts a
        synonym; this is not from the paper.
      delete_share: of a text's words that are left out, each drawn on its own, 0.1 in EDA.
    """

    swap: Share = 0.0
    delete: Share = 0.0
    insert: Share = 0.0
    delete_share: Share = 0.1

    def __post_init__(self):
        for name in ("swap", "delete", "insert", "delete_share"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, f"{value!r} is a share; must be in [0, 1]")
        total = self.swap + self.delete + self.insert
        check(
            total <= 1 + 1e-9,
            "swap",
            f"{self.swap!r}, delete {self.delete!r} and insert {self.insert!r} must be <= 1 "
            f"together",
        )

    @property
    def changes(self) -> bool:
        """Whether any text is changed."""
        return self.swap + self.delete + self.insert > 0

    def __call__(self, text: str, draw: float) -> str:
        """The changed text.

        Args:
          draw: a uniform number in [0, 1), which decides everything.
        """
        words = text.split()
        if len(words) < 2:
            return text
        drawn = np.random.Generator(np.random.Philox(key=int(draw * 2**53))).random
        way = drawn()
        if way < self.swap:
            return " ".join(_swapped(words, *drawn(2)))
        way -= self.swap
        if way < self.delete:
            kept = drawn(len(words)) >= self.delete_share
            kept[int(drawn() * len(words))] |= not kept.any()
            return " ".join(word for word, keep in zip(words, kept) if keep)
        way -= self.delete
        if way < self.insert:
            word, place = drawn(2)
            words.insert(int(place * (len(words) + 1)), words[int(word * len(words))])
            return " ".join(words)
        return text


def _swapped(words: list[str], first: float, second: float) -> list[str]:
    """Two different places have changed their words."""
    n = len(words)
    one = int(first * n)
    other = (one + 1 + int(second * (n - 1))) % n
    words[one], words[other] = words[other], words[one]
    return words
