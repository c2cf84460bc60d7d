"""The contrast of finite discrete tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("fdt")
@dataclasses.dataclass(frozen=True)
class DiscreteTokenContrast(Objective):
    """CLIP's loss on features that are sums of shared codes (FDT, Chen et al. 2023, arXiv
    2303.14865, equation 5; the head `codebook`).

        L = 1/2 (mean_i CE_i of rows + mean_i CE_i of columns) of exp(log_scale) f_image . f_text

    Reads image, text: Float[Array, "B D"], unit rows; log_scale: Float[Array, ""].

    Attributes:
      image, text: outputs of the head.
      implementation: of `contrastive_loss`; None: the best that runs here.
    """

    image: str = "codebook/image"
    text: str = "codebook/text"
    implementation: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, self.text, "log_scale")

    def __call__(self, outputs, batch, state, context):
        del batch, context
        image = outputs[self.image]
        text = outputs[self.text]
        loss = contrastive_loss(
            image,
            text,
            outputs["log_scale"],
            directions="mean",
            implementation=self.implementation,
        )
        still = jax.lax.stop_gradient
        figures = {
            "scale": jnp.exp(still(outputs["log_scale"])),
            "cosine_pairs": jnp.sum(still(image) * still(text), -1).mean(),
        }
        return Loss(loss, figures), state
