"""Contrast with terms that close the contrastive gap."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxvl.config import Scale, Weight, check
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import PairObjective, pair_metrics, pairs
from jaxvl.objectives.potentials import log_mean_others


@OBJECTIVES.register("gap")
@dataclasses.dataclass(frozen=True)
class ContrastiveGap(PairObjective):
    """CLIP's loss with alignment and uniformity (Fahim et al. 2024, "It's not a modality gap",
    arXiv 2405.18570, section 5; the loss CUAXU).

        L = CLIP(u, v) + w_u (U(u) + U(v)) / 2 + w_a mean_i |u_i - v_i|² + w_x X(u, v)
        U(x)    = log mean_{i != j} exp(-t |x_i - x_j|²)
        X(u, v) = log mean_{i != j} exp(-t |u_i - v_j|²)

    `cross=0` is the paper's CUA; all three weights 0 are CLIP's loss. No term holds a B x B matrix.
    Reads and options: `PairObjective`; `label_smoothing` and `duplicates` are those of CLIP's loss
    alone. The batch must have two rows or more.

    Attributes:
      uniformity: w_u, 1 in the paper.
      alignment: w_a, 1 in the paper.
      cross: w_x, 1 in the paper.
      rate: t, 2 in the paper.
    """

    uniformity: Weight = 1.0
    alignment: Weight = 1.0
    cross: Weight = 1.0
    rate: Scale = 2.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("uniformity", "alignment", "cross"):
            check(getattr(self, name) >= 0, name, f"{getattr(self, name)!r} must be >= 0")
        check(self.rate > 0, "rate", f"{self.rate!r} must be > 0")

    def check_data(self, data) -> None:
        """Raises ConfigError for a batch of one row, which has no other rows."""
        check(data.batch >= 2, "uniformity", f"needs two rows (data.batch is {data.batch})")

    def __call__(self, outputs, batch, state, context):
        del context
        image, text = (x.astype(jnp.float32) for x in pairs(outputs))
        clip = contrastive_loss(
            image,
            text,
            outputs["log_scale"],
            targets=self.targets(batch),
            implementation=self.implementation,
        )
        spread = [log_mean_others(x, x, self.rate, self.implementation) for x in (image, text)]
        uniform = sum(spread) / 2
        align = jnp.mean(jnp.square(image - text).sum(-1))
        cross = log_mean_others(image, text, self.rate, self.implementation)
        total = clip + self.uniformity * uniform + self.alignment * align + self.cross * cross
        metrics = {
            "clip": clip,
            "uniformity": uniform,
            "alignment": align,
            "cross_uniformity": cross,
            "centroid_distance": jnp.linalg.norm(image.mean(0) - text.mean(0)),
        }
        return Loss(total, {**pair_metrics(outputs), **metrics}), state
