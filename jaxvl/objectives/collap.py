"""Contrast of long recordings with texts by weighted clips: CoLLAP."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Count, Range, check
from jaxvl.kernels.contrastive.reductions import CrossEntropy
from jaxvl.kernels.contrastive.scores import AttentionWeighted
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.streamed import StreamedObjective, tokens


@OBJECTIVES.register("collap")
@dataclasses.dataclass(frozen=True)
class WeightedClips(StreamedObjective):
    """Symmetric cross-entropy of scores in which the text weighs the clips of a recording (CoLLAP,
    Wu et al. 2024, arXiv 2410.02271).

        a_ijk = x_ik . y_j      w_ij = softmax_k(a_ij / temperature)
        s_ij = exp(log_scale) sum_k w_ijk a_ijk

    The equation is the plainest that has the paper's mechanism; it and the temperature of the
    weights are not from the paper. The evaluator `cross_modal_retrieval` ranks by the same score
    (its option `parts`).

    Reads the outputs named by `clips`: Float[Array, "B K D"], and `text`: Float[Array, "B D"], made
    unit vectors here; where it is there `CLIPS_mask`: Bool[Array, "B K"]; `log_scale`:
    Float[Array, ""]; from the batch, where `lengths` names it, Int[Array, "B K"]. Options:
    `StreamedObjective`.

    Attributes:
      temperature: of the weights; None: the mean of the clips.
      clips, text, log_scale: names of model outputs.
      lengths: batch entry that says how long the clips are: those of length 0 do not count. None:
        all count.
      chunk: clips of which products are held at a time; None: all.
    """

    block: Count = 128
    temperature: Annotated[float, Range(1e-6, 1e6)] | None = 0.1
    clips: str = "clips"
    text: str = "text"
    log_scale: str = "log_scale"
    lengths: str | None = None
    chunk: Count | None = None

    def __post_init__(self):
        super().__post_init__()
        warm = self.temperature is None or self.temperature > 0
        check(warm, "temperature", f"{self.temperature!r} must be > 0, or None")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.clips, self.text, self.log_scale

    @property
    def batch_keys(self) -> tuple[str, ...]:
        lengths = () if self.lengths is None else (self.lengths,)
        return (*super().batch_keys, *lengths)

    def score(self, scale: jax.Array | float) -> AttentionWeighted:
        """Of a recording's clips and a text."""
        sharpness = 0.0 if self.temperature is None else 1 / self.temperature
        return AttentionWeighted(scale, sharpness, self.chunk)

    def __call__(self, outputs, batch, state, context):
        del context
        scale = jnp.exp(outputs[self.log_scale])
        clips = tokens(outputs, self.clips)
        if self.lengths is not None:
            given = batch[self.lengths] > 0
            clips = clips._replace(mask=given if clips.mask is None else given & clips.mask)
        text = l2_normalize(outputs[self.text])
        found = self.streamed(self.score(scale), clips, text, CrossEntropy(self.targets(batch)))
        return Loss(found.loss("mean"), {"scale": jax.lax.stop_gradient(scale)}), state
