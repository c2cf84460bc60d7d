"""Centred kernel alignment of two sets of features of the same records, with linear kernels, from
one pass over blocks of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How alike two sets of features are, both at most 1, which features and their own rotation
    reach.

    Attributes:
      linear: |Xc' Yc|^2 / (|Xc' Xc| |Yc' Yc|) with Frobenius norms and centred columns (Kornblith
        et al. 2019, arXiv 1905.00414, equations 3 and 4). It grows with the widths where records
        are few.
      unbiased: the same ratio of HSIC's unbiased estimates (Song et al. 2012; Nguyen et al. 2021,
        arXiv 2010.15327, equation 3); near 0 for features that have nothing in common.
    """

    linear: float
    unbiased: float


def cka(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Alignment:
    """CKA of X [n, D] and Y [n, E], given as blocks of rows (x [b, D], y [b, E]).

    It is that of all n rows, not a mean over blocks: D x D, E x E and D x E sums are kept in
    float64, and nothing of the size n x n is made.

    Raises:
      ValueError: fewer than 4 rows, blocks of unequal rows, or features that do not vary.
    """
    sums = None
    for x, y in blocks:
        if len(x) != len(y):
            raise ValueError(f"a block of {len(x)} rows has {len(y)} beside them; must be equal")
        if not len(x):
            continue
        x, y = (np.asarray(a, np.float64) for a in (x, y))
        sums = sums or _Sums(x.mean(0), y.mean(0))
        sums.add(x, y)
    if sums is None or sums.n < 4:
        raise ValueError(f"{0 if sums is None else sums.n} rows; must be at least 4")
    return Alignment(*(_ratio(*products) for products in (sums.centred(), sums.unbiased())))


def _ratio(xx: float, xy: float, yy: float) -> float:
    if not (xx > 0 and yy > 0):
        raise ValueError("features that do not vary have no alignment")
    return float(xy / np.sqrt(xx * yy))


class _Sums:
    """Sums over rows, less a row near their mean, so that little is lost when they are centred.

    Args:
      x0 [D], y0 [E]: what is taken off every row.
    """

    def __init__(self, x0: np.ndarray, y0: np.ndarray):
        self.zero = (x0, y0)
        self.n = 0
        self.first = [np.zeros_like(a) for a in self.zero]  # sum of rows
        shapes = ((0, 0), (0, 1), (1, 1))
        self.second = {s: np.zeros((len(self.zero[s[0]]), len(self.zero[s[1]]))) for s in shapes}
        self.norms = {s: 0.0 for s in shapes}  # sum of |row|^2 |row'|^2
        # sums of row |row'|^2, by whose row and whose norm
        self.third = {(i, j): np.zeros_like(self.zero[i]) for i in (0, 1) for j in (0, 1)}

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        rows = (x - self.zero[0], y - self.zero[1])
        lengths = [np.einsum("nd,nd->n", a, a) for a in rows]
        self.n += len(x)
        for i in (0, 1):
            self.first[i] += rows[i].sum(0)
        for i, j in self.second:
            self.second[i, j] += rows[i].T @ rows[j]
            self.norms[i, j] += float(lengths[i] @ lengths[j])
        for i, j in self.third:
            self.third[i, j] += lengths[j] @ rows[i]

    def centred(self) -> tuple[float, ...]:
        """|Xc' Xc|^2, |Xc' Yc|^2, |Yc' Yc|^2."""
        found = []
        for (i, j), product in self.second.items():
            found.append(np.sum((product - np.outer(self.first[i], self.first[j]) / self.n) ** 2))
        return tuple(found)

    def unbiased(self) -> tuple[float, ...]:
        """HSIC_1 of X with X, X with Y, Y with Y, each times n (n - 3).

        With K~ = X X' less its diagonal, L~ likewise of Y, it is

            tr(K~ L~) + (1' K~ 1)(1' L~ 1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1' K~ L~ 1
        """
        n = self.n
        trace_of = (np.trace(self.second[0, 0]), np.trace(self.second[1, 1]))  # of X X', Y Y'
        whole = [float(s @ s) - t for s, t in zip(self.first, trace_of)]  # 1' K~ 1, 1' L~ 1
        found = []
        for i, j in self.second:
            trace = np.sum(self.second[i, j] ** 2) - self.norms[i, j]
            through = (
                self.first[i] @ self.second[i, j] @ self.first[j]
                - self.first[i] @ self.third[i, j]
                - self.first[j] @ self.third[j, i]
                + self.norms[i, j]
            )
            between = whole[i] * whole[j] / ((n - 1) * (n - 2))
            found.append(trace + between - 2 / (n - 2) * through)
        return tuple(found)
