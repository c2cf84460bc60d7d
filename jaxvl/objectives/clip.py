"""CLIP's symmetric cross-entropy."""

from __future__ import annotations

import dataclasses

from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import PairObjective, pair_metrics, pairs


@OBJECTIVES.register("clip")
@dataclasses.dataclass(frozen=True)
class SymmetricSoftmax(PairObjective):
    """Symmetric cross-entropy of CLIP (Radford et al. 2021, fig. 3): the MEAN of both directions.

        L = 1/2 (- mean_i log softmax_j(exp(log_scale) x_i . y_j)_i  -  mean_j log
        softmax_i(exp(log_scale) x_i . y_j)_j)

    Reads and options: `PairObjective`. Raises ConfigError if label_smoothing is outside [0, 1).
    """

    def __call__(self, outputs, batch, state, context):
        del context
        loss = contrastive_loss(
            *pairs(outputs),
            outputs["log_scale"],
            targets=self.targets(batch),
            directions="mean",
            implementation=self.implementation,
        )
        return Loss(loss, pair_metrics(outputs)), state
