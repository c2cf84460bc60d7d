"""Contrast of tokens with tokens: FILIP and ColBERT."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxvl.config import Count, check
from jaxvl.kernels.contrastive.reductions import CrossEntropy
from jaxvl.kernels.contrastive.scores import LateInteraction as Score
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.streamed import StreamedObjective, tokens


@OBJECTIVES.register("late_interaction")
@dataclasses.dataclass(frozen=True)
class LateInteraction(StreamedObjective):
    """Symmetric cross-entropy of scores in which every token looks for its nearest on the other
    side.

        filip     (Yao et al. 2022, arXiv 2111.07783, equations 3 to 5) of an image with a text the
                  mean over patches of the nearest word, of a text with an image the mean over words
                  of the nearest patch
        colbert   (Khattab and Zaharia 2020, arXiv 2004.12832, equation 3) the sum over words of the
                  nearest patch, in both directions

    Reads the outputs named by `image` and `text`: Float[Array, "B T D"], made unit vectors here;
    where they are there `NAME_mask`: Bool[Array, "B T"]; log_scale: Float[Array, ""]. Options:
    `StreamedObjective`; a block of b rows and columns holds b * b * T * T' products. Config:
    configs/methods/late_interaction.py, where the head `token_projection` makes the tokens.

    Attributes:
      form: `filip` or `colbert`.
      image, text: names of model outputs.
    """

    block: Count = 32
    form: Literal["filip", "colbert"] = "filip"
    image: str = "image_tokens"
    text: str = "text_tokens"

    def __post_init__(self):
        super().__post_init__()
        known = self.form in ("filip", "colbert")
        check(known, "form", f"{self.form!r} is not valid; must be filip or colbert")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.image, self.text, "log_scale"

    def __call__(self, outputs, batch, state, context):
        del context
        scale = jnp.exp(outputs["log_scale"])
        score = Score(scale)
        if self.form == "colbert":
            score = Score(scale, "columns", "sum")
        sides = tokens(outputs, self.image), tokens(outputs, self.text)
        found = self.streamed(score, *sides, CrossEntropy(self.targets(batch)))
        return Loss(found.loss("mean"), {"scale": jax.lax.stop_gradient(scale)}), state
