"""A learned vector that stands for "nothing to match", as one more candidate of every row
(visualness)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Width, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig, one_width
from jaxvl.nn.linear import normal
from jaxvl.nn.norms import l2_normalize


@HEADS.register("null_vector")
@dataclasses.dataclass(frozen=True)
class NullVectorConfig(HeadConfig):
    """One learned unit vector, the same in every row, so that it passes through microbatches.

    Attributes:
      dim: E of the vector; None: the width of what the head reads.
    """

    dim: Width | None = None

    def __post_init__(self):
        check(self.dim is None or self.dim >= 1, "dim", f"{self.dim!r} must be >= 1, or None")
        check(len(self.sources) == 1, "reads", f"{self.reads!r} must be one name")

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return NullVector(self, self.dim or one_width(inputs), rngs=rngs)


class NullVector(Head):
    """See `NullVectorConfig`.

    Args:
      width: E.
    """

    def __init__(self, config: NullVectorConfig, width: int, *, rngs: nnx.Rngs):
        vector = normal(width**-0.5)(rngs.params(), (width,), jnp.float32)
        self.vector = nnx.Param(vector, axes=("norm",))
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
        """Unit rows float32 [B, E], all equal."""
        del batch, train, key, progress
        ((source, value),) = encoded.items()
        rows = jnp.broadcast_to(self.vector[...], (len(value.pooled), self.vector.shape[0]))
        return {self.names[source]: l2_normalize(rows)}
