"""A classifier on the tokens of a frozen image encoder: CoCa's frozen-feature evaluation (Yu et al.
2022, section 4.2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import check
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.poolers import QueryPooler


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Sizes of an attentional probe.

    Attributes:
      classes: C. memory_width: D of the tokens. width, heads: of the pooler.
    """

    classes: int
    memory_width: int
    width: int
    heads: int

    def __post_init__(self):
        check(
            self.width % self.heads == 0,
            "heads",
            f"{self.heads} must divide the width of {self.width}",
        )

    def check_inputs(self, inputs: None) -> None:
        """Tokens of any number fit."""

    def build(self, inputs: None, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Probe:
        return Probe(self, rngs=rngs, dtype=dtype)


class Probe(nnx.Module):
    """One learned query attends to the tokens; a linear layer, zero at first, makes logits of what
    it finds."""

    def __init__(self, config: ProbeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.pooler = QueryPooler(
            1, config.width, config.heads, memory_width=config.memory_width, rngs=rngs, dtype=dtype
        )
        self.head = Linear(
            config.width,
            config.classes,
            axes=("embed", "classes"),
            init=normal(0.0),
            rngs=rngs,
            dtype=jnp.float32,
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, P, D] -> logits float32 [B, C]."""
        return self.head(self.pooler(tokens)[:, 0].astype(jnp.float32))
