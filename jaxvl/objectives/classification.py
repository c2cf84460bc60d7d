"""Softmax cross-entropy of a class head."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from jaxvl.config import check
from jaxvl.objectives import OBJECTIVES, Loss, Masks, Objective


@OBJECTIVES.register("classification")
@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy of one of the model's class heads (IMP: one head a data set).

        L = - mean_i log softmax_k(logits_ik)_{y_i};   with smoothing a the target is (1 - a) onehot
                                                       + a / K

    Reads `logits/HEAD`: Float[Array, "B K"]; from the batch `label`: Int[Array, "B"], in [0, K). A
    row with a label < 0 has none and is left out, and so is one that lacks what the head sees,
    where `has/logits/HEAD`: Bool[Array, "B"] says so.

    Attributes:
      head: name of the model's head.
      label: batch entry of the classes.
      label_smoothing: a, in [0, 1).
    """

    head: str
    label: str = "class_label"
    label_smoothing: float = 0.0

    masks_missing: ClassVar[Masks] = "by output"

    def __post_init__(self):
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.label,)

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"logits/{self.head}",)

    def __call__(self, outputs, batch, state, context):
        del context
        logits = outputs[f"logits/{self.head}"].astype(jnp.float32)
        label = batch[self.label]
        known = (label >= 0).astype(jnp.float32) * outputs.get(f"has/logits/{self.head}", 1.0)
        total = jnp.maximum(known.sum(), 1.0)
        target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), self.label_smoothing)
        loss = jnp.sum(known * optax.softmax_cross_entropy(logits, target)) / total
        return Loss(
            loss, {"accuracy": jnp.sum(known * (logits.argmax(-1) == label)) / total}
        ), state
