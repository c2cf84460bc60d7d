"""What `generic.streamed_scores` makes of the scores `s_ij` of all pairs: one number of each row,
and the same of each column.

    CrossEntropy   sum_j W_ij (logsumexp_j' s_ij' - s_ij)           any targets that stream
    ReverseKL      sum_j p_ij (log p_ij - log(q_ij + epsilon))      p softmax of the scores, q of the
                                                                    targets (SDM of IRRA)
    Hinge          sum_j or max_j of max(0, margin + s_ij - s_ii)   VSE++ and before
    LogSumExp      logsumexp_j s_ij
    Top            max_j s_ij, and where

Which pairs are positive and which compete is said by targets, as for `contrastive_loss`; rows
without a positive have the loss 0 and are not counted.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive import tiles
from jaxvl.kernels.contrastive.generic import Pairs
from jaxvl.kernels.contrastive.masks import PairMask, Unpaired
from jaxvl.kernels.contrastive.targets import Diagonal, Form, SameId, Targets
from jaxvl.kernels.contrastive.tiles import Side
from jaxvl.kernels.contrastive.weighted import Weighted

Both = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the targets with the softmax of the scores.

    Attributes:
      targets: as of `contrastive_loss`; `PairMask(keep=…)`, which is as large as the scores, is
        refused.
    """

    targets: Targets = dataclasses.field(default_factory=Diagonal)

    def check(self, form: Form) -> None:
        """Every target that streams."""

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        rows, cols = _with_peaks(pairs, rows, cols, form)

        def tile(scores, rows, cols, form):
            w, keep, _ = _pairs(rows, cols, form)
            z = tiles.soft_logits(rows, cols, form, keep) if form.soft else None
            out = []
            for axis, s, side in ((1, scores[0], rows), (0, scores[1], cols)):
                d, e = _shifted(s, side, keep)
                sums = dict(z=_sum(e, axis), hit=_sum(w * d, axis))
                if form.smoothing:
                    there = jnp.ones_like(d) if keep is None else keep.astype(d.dtype)
                    sums |= dict(flat=_sum(d, axis), count=_sum(there, axis))
                if form.soft:
                    soft = _soft(z, side, keep, form)
                    sums |= dict(soft=_sum(soft, axis), soft_hit=_sum(soft * d, axis))
                out.append(sums)
            return out[0], out[1]

        sides = zip(pairs.sums(tile, rows, cols, form), (rows, cols), form.soft_weights)
        row, col = (_cross_entropy(sums, side, form, weight) for sums, side, weight in sides)
        return dict(value=row), dict(value=col)


@dataclasses.dataclass(frozen=True)
class ReverseKL:
    """KL(p || q) of the softmax p of the scores with the targets' distribution q: similarity
    distribution matching (Jiang and Ye 2023, arXiv 2303.12501, equations 4 to 6).

        L_i = sum_j p_ij (log p_ij - log(q_ij + epsilon))

    Attributes:
      targets: hard ones without label smoothing; q is the same for all positives of a row
        (`SameId`), or the shares of `Mixup`.
      epsilon: as above; the release's 1e-8.
    """

    targets: Targets = dataclasses.field(default_factory=Diagonal)
    epsilon: float = 1e-8

    def __post_init__(self):
        if not self.epsilon > 0:
            raise ValueError(f"epsilon: {self.epsilon!r} is not valid; must be > 0")

    def check(self, form: Form) -> None:
        """Raises ValueError for soft targets and label smoothing."""
        if form.soft or form.smoothing:
            raise ValueError(
                "targets: ReverseKL takes hard targets without label smoothing; SoftTargets and "
                "label_smoothing are for CrossEntropy"
            )

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        rows, cols = _with_peaks(pairs, rows, cols, form)

        def tile(scores, rows, cols, form):
            w, keep, _ = _pairs(rows, cols, form)
            out = []
            for axis, s, side in ((1, scores[0], rows), (0, scores[1], cols)):
                d, e = _shifted(s, side, keep)
                q = w * side["norm"] / _nonzero(side["total"])
                log_q = jnp.log(q + self.epsilon)
                sums = dict(z=_sum(e, axis), mean=_sum(e * d, axis), log_q=_sum(e * log_q, axis))
                out.append(sums)
            return out[0], out[1]

        def of_side(sums: Side, side: Side) -> Side:
            z = _nonzero(sums["z"])
            value = sums["mean"] / z - jnp.log(z) - sums["log_q"] / z
            return dict(value=side["total"] * value)

        row, col = pairs.sums(tile, rows, cols, form)
        return of_side(row, rows), of_side(col, cols)


@dataclasses.dataclass(frozen=True)
class Hinge:
    """What the wrong pairs of a row come too near to its right one by.

        sum        L_i = sum_j max(0, margin + s_ij - s_ii)     (Karpathy et al. 2014; Kiros et al.)
        hardest    L_i = max_j max(0, margin + s_ij - s_ii)     VSE++ (Faghri et al. 2018, arXiv
                                                                1707.05612, equation 6)

    j runs over the pairs that are not positive and compete. Of equally hard ones the first gets the
    gradient.

    Attributes:
      targets: `Diagonal()`, `SameId(duplicates="mask")`, or `PairMask` or `Weighted` around one of
        them: one positive for each row and each column.
      margin: as above.
      negatives: `sum` or `hardest`.
    """

    targets: Targets = dataclasses.field(default_factory=Diagonal)
    margin: float = 0.2
    negatives: Literal["sum", "hardest"] = "sum"

    def __post_init__(self):
        if self.negatives not in ("sum", "hardest"):
            raise ValueError(
                f"negatives: {self.negatives!r} is not valid; must be 'sum' or 'hardest'"
            )

    def check(self, form: Form) -> None:
        """Raises ValueError where a row has several positives, or none of its own place."""
        inner = _inner(self.targets)
        mask = isinstance(inner, SameId) and inner.duplicates == "mask"
        diagonal = isinstance(inner, Diagonal) and isinstance(inner.offset, int)
        if not (mask or diagonal and inner.offset == 0) or form.smoothing:
            raise ValueError(
                f"targets: {inner!r} is not valid for Hinge, which needs one positive in each "
                f"row's own place, without label smoothing; must be Diagonal() or "
                f"SameId(duplicates='mask'), or PairMask or Weighted around one of them"
            )

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        if len(rows["index"]) != len(cols["index"]):
            raise ValueError(
                f"v: {len(cols['index'])} rows do not fit; Hinge needs as many as u has "
                f"({len(rows['index'])})"
            )
        own = pairs.own()
        rows = dict(rows, own=own[0])
        cols = dict(cols, own=own[1])
        of = self._sum if self.negatives == "sum" else self._hardest
        row, col = of(pairs, rows, cols, form)
        return dict(value=rows["total"] * row), dict(value=cols["total"] * col)

    def _sum(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> Both:
        def tile(scores, rows, cols, form):
            wrong = _negatives(rows, cols, form)
            out = []
            for axis, s, side in ((1, scores[0], rows), (0, scores[1], cols)):
                near = jax.nn.relu(self.margin + s - side["own"])
                out.append(dict(near=_sum(jnp.where(wrong, near, 0.0), axis)))
            return out[0], out[1]

        row, col = pairs.sums(tile, rows, cols, form)
        return row["near"], col["near"]

    def _hardest(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> Both:
        def tile(scores, rows, cols, form):
            wrong = _negatives(rows, cols, form)
            return tuple(jnp.where(wrong, s, tiles.lowest(s.dtype)) for s in scores)

        places = pairs.best(tile, rows, cols, form)
        near = []
        for s, place, side in zip(pairs.at(*places), places, (rows, cols)):
            violation = jax.nn.relu(self.margin + s - side["own"])
            near.append(jnp.where(place >= 0, violation, 0.0))
        return near[0], near[1]


@dataclasses.dataclass(frozen=True)
class LogSumExp:
    """Log-sum-exp over the pairs that compete; 0 for rows that are not valid, -inf (without
    gradient) for those that nothing is compared with.

    Attributes:
      targets: `Unpaired`, or a `PairMask` of groups around it.
    """

    targets: Targets = dataclasses.field(default_factory=Unpaired)

    def check(self, form: Form) -> None:
        """Raises ValueError for targets that say more than which pairs compete."""
        _check_unpaired(self, form)

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        rows, cols = _with_peaks(pairs, rows, cols, form)

        def tile(scores, rows, cols, form):
            _, keep, _ = _pairs(rows, cols, form)
            out = []
            for axis, s, side in ((1, scores[0], rows), (0, scores[1], cols)):
                out.append(dict(z=_sum(_shifted(s, side, keep)[1], axis)))
            return out[0], out[1]

        def of_side(sums: Side, side: Side) -> Side:
            some = sums["z"] > 0
            value = jnp.where(some, jnp.log(_nonzero(sums["z"])) + side["m"], -jnp.inf)
            return dict(value=jnp.where(side["total"] > 0, value, 0.0))

        row, col = pairs.sums(tile, rows, cols, form)
        return of_side(row, rows), of_side(col, cols)


@dataclasses.dataclass(frozen=True)
class Top:
    """The largest score among the pairs that compete, with gradients, and its `index`; of equal
    ones the first. -inf, without gradient, and -1 where there is none.

    Attributes:
      targets: `Unpaired`, or a `PairMask` of groups around it.
    """

    targets: Targets = dataclasses.field(default_factory=Unpaired)

    def check(self, form: Form) -> None:
        """Raises ValueError for targets that say more than which pairs compete."""
        _check_unpaired(self, form)

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        def tile(scores, rows, cols, form):
            _, keep, _ = _pairs(rows, cols, form)
            if keep is None:
                return scores
            return tuple(jnp.where(keep, s, tiles.lowest(s.dtype)) for s in scores)

        places = pairs.best(tile, rows, cols, form)
        out = []
        for s, place in zip(pairs.at(*places), places):
            out.append(dict(value=jnp.where(place >= 0, s, -jnp.inf), index=place))
        return out[0], out[1]


# --------------------------------------------------------------------------------------------------
# Of one block


def _pairs(rows: Side, cols: Side, form: Form) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Raw targets [m, n], the pairs that compete (None: all), and which pairs are positive."""
    w, positive = tiles.positives(rows, cols, form)
    return w, tiles.competing(rows, cols, form, positive), positive


def _negatives(rows: Side, cols: Side, form: Form) -> jax.Array:
    """Bool [m, n], the pairs that compete and are not positive."""
    _, keep, positive = _pairs(rows, cols, form)
    return ~positive if keep is None else keep & ~positive


def _shifted(s: jax.Array, side: Side, keep: jax.Array | None) -> Both:
    """`s - m` with the side's largest score m, and its exponential; 0 where pairs do not
    compete."""
    if keep is None:
        d = s - side["m"]
        return d, jnp.exp(d)
    d = jnp.where(keep, s - side["m"], 0.0)
    return d, jnp.where(keep, jnp.exp(d), 0.0)


def _with_peaks(pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
    """The sides with `m`, the largest score that competes, and `tm`, the teacher's. Sums of
    exponentials are taken relative to these; no result depends on them."""

    def tile(scores, rows, cols, form):
        _, keep, _ = _pairs(rows, cols, form)
        z = tiles.soft_logits(rows, cols, form, keep) if form.soft == "softmax" else None
        out = []
        for axis, s in ((1, scores[0]), (0, scores[1])):
            kept = s if keep is None else jnp.where(keep, s, tiles.lowest(s.dtype))
            peaks = dict(m=jnp.max(kept, axis, keepdims=True))
            if z is not None:
                peaks["tm"] = jnp.max(z, axis, keepdims=True).astype(s.dtype)
            out.append(peaks)
        return out[0], out[1]

    row, col = pairs.largest(tile, rows, cols, form)
    return {**rows, **row}, {**cols, **col}


def _soft(z: jax.Array, side: Side, keep: jax.Array | None, form: Form) -> jax.Array:
    """The teacher's targets [m, n], before they are normalised."""
    if form.soft == "linear":
        return z
    soft = jnp.exp(z - side["tm"])
    return soft if keep is None else jnp.where(keep, soft, 0.0)


def _cross_entropy(sums: Side, side: Side, form: Form, soft_weight: float) -> jax.Array:
    hit = side["norm"] * sums["hit"]
    if form.soft:
        hit += soft_weight * sums["soft_hit"] / _nonzero(sums["soft"])
    loss = side["total"] * jnp.log(_nonzero(sums["z"])) - (1.0 - form.smoothing) * hit
    if form.smoothing:
        flat = sums["flat"] / jnp.maximum(sums["count"], 1.0)
        loss -= form.smoothing * side["total"] * flat
    return loss


def _sum(x: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(x, axis, keepdims=True)


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1.0, x)


def _inner(targets: Any) -> Any:
    while isinstance(targets, (PairMask, Weighted)):
        targets = targets.targets
    return targets


def _check_unpaired(reduction: Any, form: Form) -> None:
    inner = _inner(reduction.targets)
    if not isinstance(inner, Unpaired):
        raise ValueError(
            f"targets: {type(inner).__name__} is not valid for {type(reduction).__name__}; must be "
            f"Unpaired, or a PairMask around it"
        )
