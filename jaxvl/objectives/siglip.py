"""SigLIP's pairwise sigmoid."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import PairObjective, pair_metrics, pairs


@OBJECTIVES.register("siglip")
@dataclasses.dataclass(frozen=True)
class PairwiseSigmoid(PairObjective):
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, eq. 1):

        L = - 1/B sum_ij log sigmoid(z_ij (exp(log_scale) x_i . y_j + logit_bias)),  z = +1 for
        positives, else -1

    Reads also logit_bias: Float[Array, ""]. Options: `PairObjective`; label smoothing a moves
    targets y to (1 - a) y + a / 2.

    Raises ConfigError if label_smoothing is outside [0, 1).
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale", "logit_bias")

    def __call__(self, outputs, batch, state, context):
        del context
        loss = contrastive_loss(
            *pairs(outputs),
            outputs["log_scale"],
            kind="sigmoid",
            bias=outputs["logit_bias"],
            targets=self.targets(batch),
            implementation=self.implementation,
        )
        return Loss(
            loss, {**pair_metrics(outputs), "bias": jax.lax.stop_gradient(outputs["logit_bias"])}
        ), state
