"""Texts that no picture shows are matched with one null picture."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.kernels.contrastive import SameId, contrastive_loss
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("visualness")
@dataclasses.dataclass(frozen=True)
class Visualness(Objective):
    """CLIP's loss in which a text that is not visual belongs to a null picture (TIP-CLIP, Verma et
    al. 2023, arXiv 2305.10434, equations 1 and 2).

        e_i = x_i where text i is visual, else n
        L   = 1/2 (- mean_i log softmax_j(exp(log_scale) e_i . t_j)_i
                   - mean_j log softmax_i(exp(log_scale) e_i . t_j)_j)

    The null picture is one for all texts that are not visual, so that such texts are no negatives
    of each other's null picture (not from the paper, which leaves them in). A batch of visual texts
    has CLIP's loss. How visual a text is: 1 - cos(t, n).

    Reads the outputs named by `image` and `text`: Float[Array, "B D"], unit rows; by `null`:
    Float[Array, "D"] or "1 D" or "B D" of equal rows (the head `null_vector`, or what the image
    tower gives for a blank picture); by `scale`: Float[Array, ""]; from the batch, by `visual`:
    Bool or Int[Array, "B"], true where a text is visual.

    Attributes:
      image, text, null, scale: names of model outputs.
      visual: name of the batch entry.
      label_smoothing: in [0, 1); not from the paper.
      implementation: of `contrastive_loss`.
    """

    image: str = "image"
    text: str = "text"
    null: str = "null"
    scale: str = "log_scale"
    visual: str = "visual"
    label_smoothing: float = 0.0
    implementation: str | None = None

    def __post_init__(self):
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, self.text, self.null, self.scale)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.visual,)

    def __call__(self, outputs, batch, state, context):
        del context
        image = outputs[self.image].astype(jnp.float32)
        text = outputs[self.text].astype(jnp.float32)
        null = unit_null(outputs[self.null])
        visual = batch[self.visual] > 0
        b = len(image)
        own = jnp.where(visual, jnp.arange(b, dtype=jnp.int32), b)
        loss = contrastive_loss(
            jnp.where(visual[:, None], image, null),
            text,
            outputs[self.scale],
            targets=SameId(own, duplicates="mask", label_smoothing=self.label_smoothing),
            implementation=self.implementation,
        )
        score = jax.lax.stop_gradient(1 - text @ null)
        mean = lambda of: jnp.sum(score * of) / jnp.maximum(of.sum(), 1)
        metrics = {
            "scale": jnp.exp(jax.lax.stop_gradient(outputs[self.scale])),
            "visualness/visual": mean(visual),
            "visualness/other": mean(~visual),
        }
        return Loss(loss, metrics), state


def unit_null(null: jax.Array) -> jax.Array:
    """The null vector, float32 [D] of length 1, of [D], [1, D], or [B, D] of equal rows."""
    return l2_normalize(null.reshape(-1, null.shape[-1]).mean(0, keepdims=True))[0]
