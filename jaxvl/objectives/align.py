"""ALIGN's normalised softmax."""

from __future__ import annotations

import dataclasses

from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import PairObjective, pair_metrics, pairs


@OBJECTIVES.register("align")
@dataclasses.dataclass(frozen=True)
class NormalisedSoftmax(PairObjective):
    """Bidirectional normalised softmax of ALIGN (Jia et al. 2021, eq. 1 and 2): the SUM of both
    directions.

        L = - mean_i log softmax_j(x_i . y_j / sigma)_i  -  mean_i log softmax_j(y_i . x_j /
        sigma)_i,  1 / sigma = exp(log_scale)

    with label smoothing: targets (1 - a) onehot + a / B. Reads and options: `PairObjective`.

    Raises ConfigError if label_smoothing is outside [0, 1).
    """

    label_smoothing: float = 0.1

    def __call__(self, outputs, batch, state, context):
        del context
        loss = contrastive_loss(
            *pairs(outputs),
            outputs["log_scale"],
            targets=self.targets(batch),
            directions="sum",
            implementation=self.implementation,
        )
        return Loss(loss, pair_metrics(outputs)), state
