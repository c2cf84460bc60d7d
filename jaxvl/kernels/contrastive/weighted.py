"""Weights of the losses of rows and columns, around other targets."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jaxvl.kernels.contrastive.targets import Diagonal, Kind, Targets, Terms, target, vector


@target("targets", "rows", "cols")
class Weighted(Targets):
    """Weighs the loss of each row and of each column: `L_u = 1/M sum_i rows_i L_i`, for pairs that
    count more or less than others (rare classes, doubtful captions, hard ones).

    The weight is folded into the vectors of the targets, so the fused core streams it at no cost.
    Weights of arbitrary pairs cannot be folded; in `streamed_scores` a score may add
    `log w(u_i, v_j)` to what it gives, which weighs that pair in every denominator.

    Attributes:
      targets: hard ones; label smoothing is weighed with its row.
      rows, cols: Float["M"], Float["N"], >= 0; None: 1. No gradient flows into them.
      divide: what the sum is divided by: the `count` of the rows that have a loss, as without
        weights, or the sum of their `weights`.
    """

    targets: Targets = dataclasses.field(default_factory=Diagonal)
    rows: Any = None
    cols: Any = None
    divide: Literal["count", "weights"] = "count"

    def __post_init__(self):
        if self.divide not in ("count", "weights"):
            raise ValueError(f"divide: {self.divide!r} is not valid; must be 'count' or 'weights'")

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        if kind == "sigmoid":
            raise ValueError(
                "targets: Weighted is of kind='softmax'; a sigmoid's pairs have no row of their own"
            )
        out = self.targets.terms(m, n, kind)
        if out.form.soft:
            raise ValueError("targets: Weighted cannot hold SoftTargets")
        rows = self._side(out.rows, self.rows, m, "rows")
        cols = self._side(out.cols, self.cols, n, "cols")
        form = dataclasses.replace(out.form, weighted=True)
        return Terms(rows, cols, out.row_count, out.col_count, form)

    def _side(self, side: dict, weights: Any, length: int, name: str) -> dict:
        if weights is None:
            return side
        weight = vector(weights, length, name).astype(jnp.float32)
        if self.divide == "weights":
            # `contrastive_loss` divides by at least 1, which a sum of weights may be below.
            has = (side["total"] > 0).astype(jnp.float32)
            weight = weight * has.sum() / jnp.maximum(jnp.sum(weight * has), 1e-30)
        return dict(side, norm=side["norm"] * weight, total=side["total"] * weight)
