"""Figures of classification, by the definitions of CLIP_benchmark and WILDS."""

from __future__ import annotations

import numpy as np


def hits(found: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """bool [N]: whether the right class is among the first `k`.

    Args:
      found: int [N, K], the classes that score best, best first.
      labels: int [N], the right ones.
    """
    return (found[:, :k] == labels[:, None]).any(1)


def mean_per_class_recall(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in `labels` of the share of their images that are right
    (balanced accuracy).

    Args:
      predicted, labels: int [N].
    """
    return float(_recalls(predicted, labels).mean())


def _recalls(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    images = np.bincount(labels)
    right = np.bincount(labels, predicted == labels)
    return right[images > 0] / images[images > 0]


def f1_macro(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 over the classes that occur in `labels` (WILDS: `F1-macro_all` of iWildCam).

    A class that is predicted but never right, and in no label, counts in nothing.
    """
    classes = int(max(predicted.max(), labels.max())) + 1
    images = np.bincount(labels, minlength=classes)
    guesses = np.bincount(predicted, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    occurs = images > 0
    return float((2 * right[occurs] / (images + guesses)[occurs]).mean())


def group_means(values: np.ndarray, groups: np.ndarray) -> dict[int, float]:
    """Group -> mean of float or bool [N] over its members, for the groups that have any."""
    return {int(group): float(values[groups == group].mean()) for group in np.unique(groups)}


def worst_group(values: np.ndarray, groups: np.ndarray, left_out: tuple[int, ...] = ()) -> float:
    """The smallest of `group_means`; NaN where no group is left.

    Args:
      left_out: groups that do not count, as FMoW's region "Other".
    """
    means = [mean for group, mean in group_means(values, groups).items() if group not in left_out]
    return min(means, default=float("nan"))


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of every class, float64 [C]: the mean of the precision at each right
    record.

    As CLIP_benchmark: records of equal score stand in their order, and a class without any right
    record has 0.

    Args:
      scores: float [N, C]. targets: bool or 0/1 [N, C].
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    truth = np.take_along_axis(targets.astype(bool), order, axis=0)
    precision = truth.cumsum(0) / np.arange(1, len(scores) + 1)[:, None]
    return (precision * truth).sum(0) / np.maximum(truth.sum(0), 1)


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `average_precision` over all classes."""
    return float(average_precision(scores, targets).mean())
