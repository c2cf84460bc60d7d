"""Which of a picture's captions a row gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxvl.config import check
from jaxvl.data.records import BadRecord, Record

DRAWS = 10  # uniform numbers that one choice may use
Texts = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """A mixture of sources, drawn per row; a source that a picture does not have gives its weight to the others.

    Attributes:
      locale: main language.
      name: weight of the name in the main language.
      keyword: weight of its keywords.
      keywords_joined: a keyword caption has 1 to this many different keywords, joined with ", ".
      foreign: weight of the name in another language.
      foreign_locales: which other languages; empty: all that the picture has.
    """

    locale: str = "en"
    name: float = 1.0
    keyword: float = 0.0
    keywords_joined: int = 1
    foreign: float = 0.0
    foreign_locales: tuple[str, ...] = ()

    def __post_init__(self):
        weights = (self.name, self.keyword, self.foreign)
        check(min(weights) >= 0, "name", f"the weights {weights} must be >= 0")
        check(sum(weights) > 0, "name", "at least one of name, keyword and foreign must be > 0")
        check(1 <= self.keywords_joined <= DRAWS - 2, "keywords_joined", f"{self.keywords_joined!r} must be in 1 … {DRAWS - 2}")

    @property
    def locales(self) -> tuple[str, ...] | None:
        """Languages that can occur; None: all."""
        if self.foreign and not self.foreign_locales:
            return None
        return tuple(dict.fromkeys((self.locale, *self.foreign_locales)))

    def texts(self, record: Record) -> Texts:
        """The record's texts by source: (name,), keywords, foreign names. Raises BadRecord where there is none."""
        captions = record["captions"]
        name, keywords = captions.get(self.locale, (None, ()))
        others = self.foreign_locales or [k for k in captions if k != self.locale]
        foreign = [captions[k][0] for k in others if k in captions and k != self.locale] if self.foreign else ()
        sources = ((name,) if name and self.name else (), tuple(keywords) if self.keyword else (), tuple(foreign))
        if not any(sources):
            raise BadRecord("no caption", f"{record['key']!r} has none of the asked kind (it has locales {sorted(captions)[:5]} …)")
        return sources

    def choose(self, texts: Texts, draws: Sequence[float]) -> str:
        """One of `texts` (or several keywords, joined); `draws` are `DRAWS` uniform numbers in [0, 1)."""
        weights = [w if t else 0.0 for w, t in zip((self.name, self.keyword, self.foreign), texts)]
        point = draws[0] * sum(weights)
        chosen = 0
        for i, weight in enumerate(weights):
            if weight > 0:
                chosen = i
                if point < weight:
                    break
                point -= weight
        options = texts[chosen]
        if chosen != 1 or self.keywords_joined == 1 or len(options) == 1:
            return options[int(draws[1] * len(options))]
        rest, picked = list(options), []
        for draw in draws[2 : 2 + min(1 + int(draws[1] * self.keywords_joined), len(rest))]:
            picked.append(rest.pop(int(draw * len(rest))))
        return ", ".join(picked)
