"""Recall at k of retrieval among images and their captions, by CLIP_benchmark's definition.

A query is found at k where any of its right answers is among the first k. Right answers are known
by position: a caption belongs to its image, whatever else it would fit.
"""

from __future__ import annotations

import numpy as np


def any_among(
    found: np.ndarray, found_owner: np.ndarray, query_owner: np.ndarray, k: int
) -> np.ndarray:
    """bool [M]: whether a right candidate is among the first `k`.

    Args:
      found: int [M, K], positions of the best candidates, best first.
      found_owner: int [N], which image each candidate is of.
      query_owner: int [M], which image each query is of.
    """
    return (found_owner[found[:, :k]] == query_owner[:, None]).any(1)


def recall_at_k(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
    """The same from all scores, where there are few: share of the queries with a right candidate
    among the first `k`.

    Args:
      scores: float [M, N]; of equal ones the first counts as the better.
      positive: bool [M, N].
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(positive, best, axis=1).any(1).mean())
