"""What all pictures share, and what only some have (SepCLR)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.config import Scale, Weight, check
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.objectives.potentials import log_mean_others, mean_log_density


@OBJECTIVES.register("sepclr")
@dataclasses.dataclass(frozen=True)
class SeparatingContrast(Objective):
    """Common and salient factors of a target set against a background set, told apart (SepCLR,
    Louiset et al. 2024, arXiv 2402.11928; its released code, with k-JEM).

    Two views of a picture have each a common vector c of length 1 and a salient one s, which has no
    fixed length. Of background pictures s should be s' = 0; let s° be s of targets and s' of the
    others.

        A(x, y) = mean_i |x_i - y_i|² / 2 tau
        U(x)    = log mean_{i != j} exp(-|x_i - x_j|² / 2 tau)
        J(c, s) = mean_i log mean_j exp(-|c_i - c_j|² / 2 tau - |s_i - s_j|² / 2 tau)
        L =       A(c1, c2) + U(c1) + U(c2)                               common, all pictures
            + b_s (A(s1, s2) over targets + U(s1°) + U(s2°))              salient
            + b_r (A(s1, s') + A(s2, s')) / 2 over the background         nothing salient there
            + b_j (J(c1, s1°) + J(c2, s2°)) / 2                           independence

    J is minus the joint entropy of c and s by a kernel density estimate (k-JEM): entropies of both
    are raised by U, and theirs together by J, so that they share no information. No term holds a
    B x B matrix.

    Reads the outputs named by `common` and `salient`, one a view: Float[Array, "B D"] and
    Float[Array, "B E"]; common ones are scaled to length 1 here. From the batch, by `target`: Bool
    or Int[Array, "B"], true of targets; or a class, of which `background` is the background.

    Attributes:
      common, salient: names of model outputs, one for each of the two views.
      target: name of the batch entry.
      background: where `target` is a class, the number of the background's; None: 0, or False.
      salient_weight, null_weight, entropy_weight: b_s, b_r and b_j; 1,000, 1,000 and 10 in the
        release for CIFAR on MNIST, and others for other data.
      tau: 0.5 in the release.
      implementation: of `contrastive_logsumexp`.
    """

    common: tuple[str, str] = ("common", "common_2")
    salient: tuple[str, str] = ("salient", "salient_2")
    target: str = "target"
    background: int | None = None
    salient_weight: Weight = 1000.0
    null_weight: Weight = 1000.0
    entropy_weight: Weight = 10.0
    tau: Scale = 0.5
    implementation: str | None = None

    names: ClassVar[tuple[str, ...]] = ("salient_weight", "null_weight", "entropy_weight")

    def __post_init__(self):
        for side in ("common", "salient"):
            views = getattr(self, side)
            check(len(views) == 2, side, f"{list(views)!r} must be two outputs, one for each view")
        for name in self.names:
            check(getattr(self, name) >= 0, name, f"{getattr(self, name)!r} must be >= 0")
        check(self.tau > 0, "tau", f"{self.tau!r} must be > 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.common, *self.salient)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.target,)

    def check_data(self, data) -> None:
        """Raises ConfigError for a batch of one row, which has no other rows."""
        check(data.batch >= 2, "target", f"needs two rows (data.batch is {data.batch})")

    def __call__(self, outputs, batch, state, context):
        del context
        rate = 1 / (2 * self.tau)
        common = [l2_normalize(outputs[name]) for name in self.common]
        salient = [outputs[name].astype(jnp.float32) for name in self.salient]
        target, others = self._parts(batch[self.target])
        known = [jnp.where(target[:, None], s, 0.0) for s in salient]
        spread = lambda views: sum(log_mean_others(x, x, rate, self.implementation) for x in views)
        everywhere = jnp.ones(len(target), bool)
        shared = rate * _mean_square(common[0] - common[1], everywhere) + spread(common)
        own = rate * _mean_square(salient[0] - salient[1], target) + spread(known)
        null = rate * sum(_mean_square(s, others) for s in salient) / 2
        joint = [
            mean_log_density(jnp.concatenate(both, 1), rate, self.implementation)
            for both in zip(common, known)
        ]
        entropy = sum(joint) / 2
        total = (
            shared
            + self.salient_weight * own
            + self.null_weight * null
            + self.entropy_weight * entropy
        )
        parts = {"common": shared, "salient": own, "null": null, "joint": entropy}
        return Loss(total, parts | {"targets": target.mean(dtype=jnp.float32)}), state

    def _parts(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which rows are targets, and which the background's, bool [B]; of classes, one < 0 is
        neither."""
        if self.background is None:
            return value > 0, ~(value > 0)
        return (value != self.background) & (value >= 0), value == self.background


def _mean_square(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Mean of |x_i|² over the rows that are true; 0 of none."""
    return jnp.sum(jnp.square(x).sum(1) * rows) / jnp.maximum(rows.sum(), 1)
