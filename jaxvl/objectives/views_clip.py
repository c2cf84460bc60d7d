"""CLIP's loss on clean views and on augmented ones, each with projections of its own."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Range, check
from jaxvl.kernels.contrastive import Diagonal, contrastive_loss
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective

Names = tuple[str, ...]


@OBJECTIVES.register("views_clip")
@dataclasses.dataclass(frozen=True)
class ViewsClip(Objective):
    """The improved recipe for CLIP: a clean pair and augmented pairs, which share the encoders and
    not the projections (Fini et al. 2023, "Improved baselines for vision-language pre-training",
    arXiv 2305.08675, section 4; the release's `CL2LLoss`).

        L = (CLIP(u, v) + n mean_kl CLIP_a(u_k, v_l)) / (1 + n)

    u and v are of the clean views; u_k and v_l of the n augmented pictures and texts, every one
    with every one; CLIP is the mean of both directions. Only CLIP_a has smooth labels, and it has a
    scale of its own. The release's `sum` is a weight of 2.

    Reads the outputs named by `image`, `text`, `augmented_images` and `augmented_texts`:
    Float[Array, "B D"], which are scaled to length 1 here; `scale` and `augmented_scale`:
    Float[Array, ""] (head `learned_scale`).

    Attributes:
      image, text, scale: outputs of the clean views.
      augmented_images, augmented_texts: outputs of the augmented views; n is the number of
        pictures, 2 in the release.
      augmented_scale: the log of their scale.
      label_smoothing: of the augmented views, in [0, 1), 0.1 in the release's experiments.
      implementation: of `contrastive_loss`.
    """

    image: str = "image"
    text: str = "text"
    scale: str = "log_scale"
    augmented_images: Names = ("augmented_image/image_2",)
    augmented_texts: Names = ("augmented_text/text_2",)
    augmented_scale: str = "augmented_scale"
    label_smoothing: Annotated[float, Range(0.0, 1.0)] = 0.1
    implementation: str | None = None

    def __post_init__(self):
        for name in ("augmented_images", "augmented_texts"):
            check(bool(getattr(self, name)), name, "must name at least one output")
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        clean = (self.image, self.text, self.scale)
        return (*clean, *self.augmented_images, *self.augmented_texts, self.augmented_scale)

    def __call__(self, outputs, batch, state, context):
        del batch, context
        rows = {name: l2_normalize(outputs[name]) for name in self.reads if outputs[name].ndim > 1}
        clean = self._clip(rows[self.image], rows[self.text], outputs[self.scale], 0.0)
        pairs = list(itertools.product(self.augmented_images, self.augmented_texts))
        scale = outputs[self.augmented_scale]
        each = [self._clip(rows[u], rows[v], scale, self.label_smoothing) for u, v in pairs]
        augmented = sum(each) / len(pairs)
        n = len(self.augmented_images)
        cosine = jnp.sum(rows[self.image] * rows[self.text], -1).mean()
        metrics = {
            "clean": clean,
            "augmented": augmented,
            "scale": jnp.exp(outputs[self.scale]),
            "augmented_scale": jnp.exp(scale),
            "cosine_pairs": cosine,
        }
        return Loss((clean + n * augmented) / (1 + n), jax.lax.stop_gradient(metrics)), state

    def _clip(self, u: jax.Array, v: jax.Array, scale: jax.Array, smoothing: float) -> jax.Array:
        targets = Diagonal(label_smoothing=smoothing)
        return contrastive_loss(u, v, scale, targets=targets, implementation=self.implementation)
