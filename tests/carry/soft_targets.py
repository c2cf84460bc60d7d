"""Softened targets: texts that resemble the right one are partly right."""

import dataclasses
from typing import ClassVar

from jaxvl.kernels.contrastive import SoftTargets, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("soft_targets")
@dataclasses.dataclass(frozen=True)
class SoftTargetLoss(Objective):
    """Cross-entropy whose targets are mixed with the softmax of the texts' own similarities."""

    share: float = 0.3
    temperature: float = 0.1

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale")

    def __call__(self, outputs, batch, state, context):
        text = outputs["text"]
        targets = SoftTargets(text, text, scale=1 / self.temperature, weight=self.share)
        pair = (outputs["image"], text, outputs["log_scale"])
        return Loss(contrastive_loss(*pair, targets=targets)), state
