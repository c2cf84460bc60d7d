"""Cross-entropy of captions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("captioning")
@dataclasses.dataclass(frozen=True)
class Captioning(Objective):
    """Next-token cross-entropy over all tokens of the batch that are not padding (CoCa, Yu et al.
    2022, eq. 3).

        L = - sum_t w_t log p_t / sum_t w_t,    p_t of the target token; with smoothing a: (1 - a)
                                                onehot + a / V

    Reads what `nn.vocabulary.VocabularyHead.scores` says of the logits, so that they are never
    held: caption_lse, caption_target, caption_mean: Float[Array, "B T"]; caption_correct:
    Bool[Array, "B T"]; caption_weight.

    Attributes:
      label_smoothing: a, in [0, 1).
    """

    label_smoothing: float = 0.0

    reads: ClassVar[tuple[str, ...]] = (
        "caption_lse",
        "caption_target",
        "caption_mean",
        "caption_correct",
        "caption_weight",
    )
    batch_keys: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )

    def __call__(self, outputs, batch, state, context):
        del batch, context
        weight = outputs["caption_weight"]
        a = self.label_smoothing
        total = jnp.maximum(weight.sum(), 1.0)
        nll = outputs["caption_lse"] - outputs["caption_target"]
        smoothed = nll + a * (outputs["caption_target"] - outputs["caption_mean"])
        plain = jax.lax.stop_gradient(jnp.sum(weight * nll) / total)
        correct = jnp.sum(weight * outputs["caption_correct"]) / total
        return Loss(
            jnp.sum(weight * smoothed) / total,
            {"token_accuracy": correct, "perplexity": jnp.exp(plain)},
        ), state
