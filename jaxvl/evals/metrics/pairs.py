"""Scores of images and texts that belong together: SugarCrepe, Winoground and others."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PairScores:
    """Which instances are right; all are bool [n].

    Attributes:
      image: every text's nearest image is its own (Winoground's image score).
      text: every image's nearest text is its own (its text score).
      both: both (its group score).
      text_strict: as `text`, but a wrong text that scores the same makes it wrong.
      image_strict: as `image`, likewise.
    """

    image: np.ndarray
    text: np.ndarray
    both: np.ndarray
    text_strict: np.ndarray
    image_strict: np.ndarray


def pair_scores(images: np.ndarray, texts: np.ndarray) -> PairScores:
    """Scores of n instances with I images and T texts each; image i belongs to text i, the rest are
    distractors.

    As CLIP_benchmark: of equal scores the first is the nearest. So a tie of SugarCrepe's two texts
    counts as right there; its authors, and `text_strict`, count it as wrong. With two images and
    two texts a tie is wrong in either way.

    An instance with a score that is no number is wrong.

    Args:
      images: float [n, I, D]. texts: float [n, T, D]. Unit rows.
    """
    scores = np.einsum("nid,ntd->nit", images, texts)
    own = np.arange(min(images.shape[1], texts.shape[1]))
    numbers = ~np.isnan(scores).any((1, 2))
    text = (scores.argmax(2)[:, own] == own).all(1) & numbers
    image = (scores.argmax(1)[:, own] == own).all(1) & numbers
    return PairScores(
        image,
        text,
        image & text,
        _alone_at_top(scores, own),
        _alone_at_top(scores.swapaxes(1, 2), own),
    )


def chance(images: int, texts: int) -> dict[str, float]:
    """Expected shares of an encoder that knows nothing, by name of the score; those that have no
    simple form are left out.

    Args:
      images, texts: of an instance.
    """
    own = min(images, texts)
    known = {"image": (1 / images) ** own, "text": (1 / texts) ** own}
    if own == 1:
        known["both"] = known["image"] * known["text"]
    if images == texts == 2:
        known["both"] = (
            1 / 6
        )  # of the 24 orders of four scores, 4 have both right ones above both wrong ones
    return known


def _alone_at_top(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """bool [n]: whether candidate i of query i scores higher than every other one; scores [n,
    queries, candidates]."""
    right = scores[:, own, own]
    wrong = scores[:, own].copy()
    wrong[:, own, own] = -np.inf
    return (right > wrong.max(2)).all(1)


def jaccard(chosen: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over that of the union of two sets, bool [n]; 0 where both are
    empty."""
    union = (chosen | right).sum()
    return float((chosen & right).sum() / union) if union else 0.0


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """bool [n]: the `k` best of float [n]; of equal ones the later, as the sorting of WinoGAViL's
    evaluation has it."""
    chosen = np.zeros(len(scores), bool)
    if k:
        chosen[np.argsort(scores, kind="stable")[-k:]] = True
    return chosen
