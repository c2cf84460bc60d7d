"""What encoders give, as it is: for the job that computes features once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig


@HEADS.register("encoded")
@dataclasses.dataclass(frozen=True)
class EncodedConfig(HeadConfig):
    """Outputs `LABEL/NAME_pooled` float32 [B, D], `LABEL/NAME_tokens` float32 [B, T, D] and
    `LABEL/NAME_mask` float32 [B, T], 1 where a token is none of padding, of each input that the
    head reads. It has no parameters."""

    any_widths: ClassVar[bool] = True

    @property
    def names(self) -> dict[str, str]:
        return {source: source.rpartition("/")[2] for source in self.sources}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        del inputs, rngs, dtype
        return EncodedInputs(self.names)


class EncodedInputs(Head):
    """See `EncodedConfig`."""

    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        del batch, train, key, progress
        outputs = {}
        for source, value in encoded.items():
            name = self.names[source]
            mask = value.mask
            if mask is None:
                mask = jnp.ones(value.tokens.shape[:2], bool)
            outputs[f"{name}_pooled"] = value.pooled.astype(jnp.float32)
            outputs[f"{name}_tokens"] = value.tokens.astype(jnp.float32)
            outputs[f"{name}_mask"] = mask.astype(jnp.float32)
        return outputs
