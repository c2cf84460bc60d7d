"""Supervised contrast of records pooled over picture and text."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Range
from jaxvl.kernels.contrastive import PairMask, Unpaired, contrastive_logsumexp
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("record_linkage")
@dataclasses.dataclass(frozen=True)
class RecordLinkage(Objective):
    """Records of one class are alike as a whole (CLIPPINGS, Arora et al. 2023, arXiv 2304.03464),
    by the supervised contrast of Khosla et al. 2020, equation 2.

        z_i = (u_i + v_i) / |u_i + v_i|
        L   = mean_i [ log sum_{a != i} exp(s z_i . z_a)  -  1 / |P_i|  sum_{p in P_i} s z_i . z_p ]

    P_i are the other rows of i's class. The mean is over the rows that have some; where there is
    none the loss is 0. A row with a label < 0 has no class, and is one of the others only. The
    evaluator `linkage` reads the same vectors.

    Reads the outputs named by `image`, `text`: Float[Array, "B D"], unit rows; log_scale:
    Float[Array, ""], where `temperature` is None; from the batch `label`: Int[Array, "B"].

    Attributes:
      image, text: names of model outputs.
      label: batch entry of the classes.
      temperature: 1 / s, 0.1; the number is not from the paper. None: s is exp(log_scale).
      implementation: of `contrastive_logsumexp`.
    """

    image: str = "image"
    text: str = "text"
    label: str = "class_label"
    temperature: Annotated[float, Range(0.0, 1e3, above=True)] | None = 0.1
    implementation: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        scale = ("log_scale",) if self.temperature is None else ()
        return (self.image, self.text, *scale)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, outputs, batch, state, context):
        del context
        z = l2_normalize(outputs[self.image] + outputs[self.text]).astype(jnp.float32)
        log_scale = -jnp.log(jnp.float32(self.temperature or 1.0))
        if self.temperature is None:
            log_scale = outputs["log_scale"]
        own = jnp.arange(len(z))
        others = PairMask(Unpaired(), row_group=own, col_group=own, drop="same")
        top, _ = contrastive_logsumexp(
            z, z, log_scale, targets=others, implementation=self.implementation
        )
        alike, count = same_class(z, batch[self.label])
        has = (count > 0) & (batch[self.label] >= 0)
        terms = top - jnp.exp(log_scale) * alike / jnp.maximum(count, 1)
        loss = jnp.sum(jnp.where(has, terms, 0.0)) / jnp.maximum(has.sum(), 1)
        return Loss(loss, {"anchors": has.mean(), "positives": (count * has).mean()}), state


def same_class(z: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of z_i . z_p over the other rows p of i's class, and how many these are: float32 [B]
    each. O(B D), by sums over classes."""
    b = len(z)
    place = jnp.unique(label, size=b, return_inverse=True)[1].reshape(-1)
    sums = jax.ops.segment_sum(z, place, b)
    counts = jax.ops.segment_sum(jnp.ones(b, jnp.float32), place, b)
    return jnp.sum(z * (sums[place] - z), -1), counts[place] - 1
