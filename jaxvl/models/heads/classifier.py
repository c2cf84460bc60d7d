"""Class heads, with an additive angular margin where one is wanted (ArcFace, Deng et al. 2018,
arXiv 1801.07698)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Range, Scale, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig, one_width
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import l2_normalize


@HEADS.register("classifier")
@dataclasses.dataclass(frozen=True)
class ClassifierConfig(HeadConfig):
    """Logits of classes: `logits/LABEL`, which `classification` reads with `head=LABEL`.

    Without a margin a linear map. With `margin` m (equation 3 of ArcFace) the logits are, in
    training, s cos(t_k + m [k = y]) with t_k the angle between the pooled vector and class k's, y
    the row's label; in evaluation s cos(t_k). Where t_y + m would pass pi, the official code's
    s (cos(t_y) - m sin(m)) stands for it. A row with a label < 0 has no margin.

    Attributes:
      classes: K.
      margin: m in radians (the paper: 0.5), or None.
      scale: s (the paper: 64); of a head with a margin.
      label: batch entry of the labels, int [B]; of a head with a margin.
    """

    classes: Annotated[int, Range(2, 16_777_216)]
    margin: Annotated[float, Range(0.0, math.pi)] | None = None
    scale: Scale = 64.0
    label: str = "class_label"

    prefix: ClassVar[str] = "logits/"

    def __post_init__(self):
        check(self.classes >= 2, "classes", f"{self.classes!r} must be >= 2")
        check(
            self.margin is None or 0 <= self.margin < math.pi,
            "margin",
            f"{self.margin!r} is an angle in radians; must be in [0, pi), or None",
        )
        check(self.scale > 0, "scale", f"{self.scale!r} must be > 0")

    @property
    def class_count(self) -> int:
        return self.classes

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Classifier(self, one_width(inputs), rngs=rngs, dtype=dtype)


class Classifier(Head):
    """See `ClassifierConfig`.

    Args:
      width: D of what is classified.
    """

    def __init__(self, config: ClassifierConfig, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.linear = Linear(
            width,
            config.classes,
            axes=("embed", "classes"),
            bias=config.margin is None,
            init=normal(0.02),
            rngs=rngs,
            dtype=dtype,
        )
        self.config = config

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Float32 [B, K] for each input. Raises ValueError in training where a margin has no
        labels."""
        del key, progress
        config = self.config
        if config.margin is None:
            logits = lambda x: self.linear(x).astype(jnp.float32)
        elif not train:
            logits = lambda x: config.scale * self._cosine(x)
        elif config.label in batch:
            logits = lambda x: self._with_margin(x, batch[config.label])
        else:
            raise ValueError(
                f"label: {config.label!r} is not in the batch; a margin needs labels in training "
                f"(there are: {', '.join(sorted(batch))})"
            )
        return {config.names[source]: logits(value.pooled) for source, value in encoded.items()}

    def _cosine(self, x: jax.Array) -> jax.Array:
        """[B, D] -> float32 [B, K]."""
        kernel = self.linear.kernel[...]
        norm = jnp.sqrt(jnp.maximum(jnp.square(kernel).sum(0), 1e-24))
        return (l2_normalize(x) @ kernel) / norm

    def _with_margin(self, x: jax.Array, label: jax.Array) -> jax.Array:
        margin = self.config.margin
        cosine = self._cosine(x)
        own = jax.nn.one_hot(label, cosine.shape[1], dtype=bool)
        # Away from 0, where the square root has no finite slope.
        sine = jnp.sqrt(jnp.clip(1 - jnp.square(cosine), 1e-7, 1.0))
        beyond = cosine <= math.cos(math.pi - margin)
        moved = jnp.where(
            beyond,
            cosine - margin * math.sin(margin),
            cosine * math.cos(margin) - sine * math.sin(margin),
        )
        return self.config.scale * jnp.where(own, moved, cosine)
