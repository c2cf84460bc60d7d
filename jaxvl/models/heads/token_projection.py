"""Tokens in a space of their own, for losses that compare tokens with tokens (FILIP, Yao et al.
2022, arXiv 2111.07783; ColBERT, Khattab and Zaharia 2020, arXiv 2004.12832)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Width, check
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Encoded, Head, HeadConfig
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import l2_normalize


@HEADS.register("token_projection")
@dataclasses.dataclass(frozen=True)
class TokenProjectionConfig(HeadConfig):
    """A linear map of every token, of each input its own.

    Outputs LABEL/NAME: float32 [B, T, E], unit vectors; of an input with padding LABEL/NAME_mask:
    bool [B, T]. The objective `late_interaction` reads both.

    Attributes:
      reads: the model's inputs, as a list; of any widths.
      dim: E; 256 as in FILIP.
    """

    dim: Width = 256

    any_widths: ClassVar[bool] = True

    def __post_init__(self):
        several = not isinstance(self.reads, str)
        check(several, "reads", f"{self.reads!r} must be a list of inputs, as ({self.reads!r},)")
        check(self.dim >= 1, "dim", f"{self.dim!r} must be >= 1")

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return TokenProjection(self, inputs, rngs=rngs, dtype=dtype)


class TokenProjection(Head):
    """See `TokenProjectionConfig`."""

    def __init__(
        self,
        config: TokenProjectionConfig,
        inputs: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        options = dict(axes=("embed", "joint"), bias=False, rngs=rngs, dtype=dtype)
        self.names = config.names
        self.map = nnx.Dict(
            {self.names[s]: Linear(width, config.dim, **options) for s, width in inputs.items()}
        )

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """See `TokenProjectionConfig`."""
        del batch, train, key, progress
        outputs = {}
        for source, value in encoded.items():
            name = self.names[source]
            outputs[name] = l2_normalize(self.map[name](value.tokens))
            if value.mask is not None:
                outputs[f"{name}_mask"] = value.mask
        return outputs
