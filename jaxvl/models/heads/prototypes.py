"""Prototypes that rows are compared with (SwAV, Caron et al. 2020, arXiv 2006.09882)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Range, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig, one_width
from jaxvl.nn.linear import normal
from jaxvl.nn.norms import l2_normalize


@HEADS.register("prototypes")
@dataclasses.dataclass(frozen=True)
class PrototypesConfig(HeadConfig):
    """Cosines of each pooled vector with K learned prototypes; several inputs share them.

    Prototypes lie as rows [K, D], sharded over both axes (`prototypes`, `embed`). They are scaled
    to length 1 where they are read, as SwAV does with its parameters before every step.

    Attributes:
      count: K (the paper: 3000).
      freeze_share: share of the run in which no gradient reaches the prototypes (SwAV: its first
        epoch).
    """

    count: Annotated[int, Range(1, 16_777_216)] = 3000
    freeze_share: Annotated[float, Range(0.0, 1.0)] = 0.0

    def __post_init__(self):
        check(self.count >= 1, "count", f"{self.count!r} must be >= 1")
        check(
            0 <= self.freeze_share <= 1,
            "freeze_share",
            f"{self.freeze_share!r} is a share of the run; must be in [0, 1]",
        )

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Prototypes(self, one_width(inputs), rngs=rngs, dtype=dtype)


class Prototypes(Head):
    """See `PrototypesConfig`.

    Args:
      width: D of what is compared.
    """

    def __init__(self, config: PrototypesConfig, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        rows = normal(width**-0.5)(rngs.params(), (config.count, width), jnp.float32)
        self.rows = nnx.Param(rows, axes=("prototypes", "embed"))
        self.names = config.names
        self.freeze_share = config.freeze_share
        self.dtype = dtype

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Cosines float32 [B, K] for each input."""
        del batch, train, key
        rows = self.rows[...]
        if self.freeze_share and progress is not None:
            still = jax.lax.stop_gradient(rows)
            rows = jnp.where(progress < self.freeze_share, still, rows)
        rows = rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(1, keepdims=True), 1e-24))
        rows = rows.astype(self.dtype)
        outputs = {}
        for source, value in encoded.items():
            unit = l2_normalize(value.pooled).astype(self.dtype)
            outputs[self.names[source]] = jnp.einsum(
                "BD,KD->BK", unit, rows, preferred_element_type=jnp.float32
            )
        return outputs
