"""Masked words, found from the text that is left and from the image (ALBEF, IRRA)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.distilled import Distilled


@OBJECTIVES.register("masked_words")
@dataclasses.dataclass(frozen=True)
class MaskedWords(Distilled):
    """Cross-entropy of the hidden words, with a teacher also of its distribution over words (ALBEF,
    Li et al. 2021, arXiv 2107.07651, equations 3 and 7; IRRA, Jiang and Ye 2023, arXiv 2303.12501,
    equation 3, without a teacher).

        L = mean over hidden tokens of  (1 - alpha) (- log p_target) - alpha sum_v p'_v log p_v

    p, p' are the softmax of the model's and of the teacher's logits, p' without gradient. A batch
    without a hidden token has the loss 0.

    Reads HEAD/words: Float[Array, "B T V"] of a `fusion` head; from the batch FIELD_target:
    Int[Array, "B T"] of a field `masked_text`, -1 where nothing is hidden; with a teacher
    TEACHER/HEAD/words: Float[Array, "B T V"], of a hook `teach`.

    Attributes:
      head: label of the head.
      field: name of the field.
      teacher: label of the hook, or None for hard targets alone (IRRA).
      alpha, ramp: see `Distilled`.
    """

    head: str = "fusion"
    field: str = "masked_text"
    teacher: str | None = "momentum"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"{self.head}/words",)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        soft = () if self.teacher is None else (f"{self.teacher}/{self.head}/words",)
        return (f"{self.field}_target", *soft)

    def __call__(self, outputs, batch, state, context):
        logits = outputs[f"{self.head}/words"].astype(jnp.float32)
        target = batch[f"{self.field}_target"]
        hidden = (target >= 0).astype(jnp.float32)
        total = jnp.maximum(hidden.sum(), 1.0)
        mean = lambda x: jnp.sum(hidden * x) / total
        word = jnp.maximum(target, 0)
        loss = mean(optax.softmax_cross_entropy_with_integer_labels(logits, word))
        right = jax.lax.stop_gradient(logits).argmax(-1) == word
        if self.teacher is not None and self.alpha:
            known = jax.lax.stop_gradient(batch[f"{self.teacher}/{self.head}/words"])
            soft = jax.nn.softmax(known.astype(jnp.float32))
            loss = self.mixed(loss, mean(optax.softmax_cross_entropy(logits, soft)), context)
        return Loss(loss, {"accuracy": mean(right), "hidden": hidden.mean()}), state
