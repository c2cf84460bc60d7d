"""New texts that still find the pictures of an older model's space."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("old_space")
@dataclasses.dataclass(frozen=True)
class OldSpace(Objective):
    """Text to image, among rows that a frozen older map makes of the pictures (backward-compatible
    training, Shen et al. 2020, arXiv 2003.11942)."""

    reads: ClassVar[tuple[str, ...]] = ("old", "text", "log_scale")

    def __call__(self, outputs, batch, state, context):
        logits = jnp.exp(outputs["log_scale"]) * outputs["text"] @ outputs["old"].T
        return Loss(-jnp.diagonal(jax.nn.log_softmax(logits)).mean()), state
