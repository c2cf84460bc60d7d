"""Similarity distribution matching of IRRA."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp

from jaxvl.config import Epsilon, Range, check
from jaxvl.kernels.contrastive.reductions import ReverseKL
from jaxvl.kernels.contrastive.scores import Dot
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import pair_metrics, pairs
from jaxvl.objectives.streamed import StreamedObjective


@OBJECTIVES.register("sdm")
@dataclasses.dataclass(frozen=True)
class DistributionMatching(StreamedObjective):
    """The softmax of the similarities must be the distribution of the labels, by KL(p || q) (IRRA,
    Jiang and Ye 2023, arXiv 2303.12501, equations 4 to 6).

        p_ij = softmax_j(x_i . y_j / temperature)       q_ij = [id_i = id_j] / sum_j [id_i = id_j]
        L = mean_i sum_j p_ij (log p_ij - log(q_ij + epsilon))  +  the same of texts and images

    Cross-entropy is KL(q || p). Both have the same minimum; this one also weighs down wrong pairs
    by how likely they are held to be, and a second picture of one id costs nothing.

    Reads image, text: Float[Array, "B D"]; log_scale, for the log, or where `temperature` is None;
    from the batch group_id: Int[Array, "B"], the identity. Options: `StreamedObjective`, with
    `duplicates="positive"` as in the paper. Config: configs/methods/irra.py.

    Attributes:
      temperature: as above; the paper's 0.02. None: the model's learned scale (not from the paper).
      epsilon: as above; the release's 1e-8.
    """

    duplicates: Literal["diagonal", "positive", "mask"] = "positive"
    temperature: Annotated[float, Range(1e-6, 1e6)] | None = 0.02
    epsilon: Epsilon = 1e-8

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale")

    def __post_init__(self):
        super().__post_init__()
        warm = self.temperature is None or self.temperature > 0
        check(warm, "temperature", f"{self.temperature!r} must be > 0, or None")
        check(self.epsilon > 0, "epsilon", f"{self.epsilon!r} must be > 0")

    def __call__(self, outputs, batch, state, context):
        del context
        learned = jnp.exp(outputs["log_scale"])
        scale = learned if self.temperature is None else 1 / self.temperature
        image, text = map(l2_normalize, pairs(outputs))
        reduce = ReverseKL(self.targets(batch), self.epsilon)
        found = self.streamed(Dot(scale), image, text, reduce)
        return Loss(found.loss("sum"), pair_metrics(outputs)), state
