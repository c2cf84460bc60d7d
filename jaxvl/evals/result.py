"""What an evaluator returns: figures, and a gallery of queries with what was retrieved."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping

from jaxvl.aliases import Json
from jaxvl.evals.recorded import number
from jaxvl.evals.shown import brief


class EvaluatorError(RuntimeError):
    """An evaluator met an error that is no bad record. The message names the record; the error
    itself is the cause."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One retrieved candidate.

    Attributes:
      text: its caption or class name.
      score: cosine similarity with the query, where the heading names no other.
      right: whether it is a correct answer.
      image: a small PNG, or None.
    """

    text: str
    score: float
    right: bool
    image: bytes | None = None


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """One query and its best candidates.

    Attributes:
      group: heading under which rows stand together.
      text: the query's text; of an image query the right answer.
      image: the query image as a small PNG; None for a text query.
      items: best first.
      rank: of the best right candidate, from 1 (ties: expected rank, so it may be fractional); None
        where nothing is ranked.
      note: one sentence more about it.
    """

    group: str
    text: str
    image: bytes | None
    items: tuple[Item, ...]
    rank: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """JSON-able dict with pictures in base64, texts as they are shown, and None for a number
        that is not finite."""
        items = [
            {
                "text": brief(item.text),
                "score": number(item.score),
                "right": item.right,
                "image": _encode(item.image),
            }
            for item in self.items
        ]
        return {
            "group": brief(self.group),
            "text": brief(self.text),
            "image": _encode(self.image),
            "items": items,
            "rank": number(self.rank),
            "note": brief(self.note),
        }

    @classmethod
    def from_json(cls, node: Mapping[str, Json]) -> GalleryRow:
        """Inverse of `to_json`, but for what that cut."""
        items = tuple(Item(**{**i, "image": _decode(i["image"])}) for i in node["items"])
        return cls(**{**node, "image": _decode(node["image"]), "items": items})


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Figures (name -> number; shares in 0..1) and the gallery."""

    metrics: dict[str, float]
    gallery: list[GalleryRow]


def _encode(image: bytes | None) -> str | None:
    return None if image is None else base64.b64encode(image).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
