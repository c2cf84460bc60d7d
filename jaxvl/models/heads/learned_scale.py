"""A learned scale of logits beside the model's own: for a contrast of other projections."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Scale, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn.gradients import clip_with_gradient


@HEADS.register("learned_scale")
@dataclasses.dataclass(frozen=True)
class LearnedScaleConfig(HeadConfig):
    """The log of a learned scale: the output `LABEL`, float32 [].

    Attributes:
      reads: one name; the head runs where it is there, and looks at nothing of it.
      init: the first scale; 10 for the augmented views of the improved baselines (Fini et al. 2023,
        arXiv 2305.08675; the release).
      most: the largest scale, as in CLIP; None: no bound, as in that release.
    """

    init: Scale = 10.0
    most: Scale | None = 100.0

    def __post_init__(self):
        check(self.init > 0, "init", f"{self.init!r} must be > 0")
        problem = f"{self.most!r} must be >= init {self.init!r}, or None"
        check(self.most is None or self.most >= self.init, "most", problem)
        check(len(self.sources) == 1, "reads", f"{self.reads!r} must be one name")

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        del inputs, rngs, dtype
        return LearnedScale(self)


class LearnedScale(Head):
    """See `LearnedScaleConfig`."""

    def __init__(self, config: LearnedScaleConfig):
        self.most = None if config.most is None else math.log(config.most)
        start = jnp.float32(math.log(config.init))
        self.log_scale = nnx.Param(start, axes=(), bounds=(None, self.most))
        self.names = config.names

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Float32 []."""
        del batch, train, key, progress
        (source,) = encoded
        scale = self.log_scale[...]
        bounded = scale if self.most is None else clip_with_gradient(scale, self.most)
        return {self.names[source]: bounded}
