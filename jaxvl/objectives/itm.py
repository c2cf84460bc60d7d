"""Image-text matching of a head that sees both at once (ALBEF)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("itm")
@dataclasses.dataclass(frozen=True)
class Matching(Objective):
    """Cross-entropy of "match" for the B pairs and of "no match" for 2 B hard negatives: each text
    with another image, each image with another text (ALBEF, Li et al. 2021, arXiv 2107.07651,
    section 3.2, equation 4).

        L = mean over pairs of - log softmax(logits)_y,   y = 1 for the batch's pairs, else 0

    Reads HEAD/matching: Float[Array, "B 3 2"] of a `fusion` head; from the batch
    NEGATIVES/has_image, NEGATIVES/has_text: Bool[Array, "B"] of a hook `hard_negatives`: a row that
    no negative was found for has its positive alone. Raises ValueError where the head has no
    negatives.

    Attributes:
      head: label of the head.
      negatives: label of the hook, the same as in the head's options.
    """

    head: str = "fusion"
    negatives: str = "negatives"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"{self.head}/matching",)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (f"{self.negatives}/has_image", f"{self.negatives}/has_text")

    def __call__(self, outputs, batch, state, context):
        del context
        logits = outputs[f"{self.head}/matching"].astype(jnp.float32)
        if logits.shape[1] != 3:
            raise ValueError(
                f"{self.head}/matching: {logits.shape[1]} pairs a row are not valid; must be 3, so "
                f"the head needs negatives={self.negatives!r}"
            )
        has_image, has_text = (batch[name] for name in self.batch_keys)
        counts = jnp.stack([jnp.ones_like(has_image), has_image, has_text], 1).astype(jnp.float32)
        match = jnp.zeros(logits.shape[:2], jnp.int32).at[:, 0].set(1)
        total = jnp.maximum(counts.sum(), 1.0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, match)
        right = jax.lax.stop_gradient(logits).argmax(-1) == match
        positives = jnp.mean(right[:, 0])
        loss = jnp.sum(counts * losses) / total
        figures = {"accuracy": jnp.sum(counts * right) / total, "accuracy_pairs": positives}
        return Loss(loss, figures), state
