"""Token matching: every patch looks for its word, and a pair's score is the mean of the best."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from jaxvl.kernels.contrastive import Diagonal, streamed_scores
from jaxvl.kernels.contrastive.reductions import CrossEntropy
from jaxvl.models.heads import HEADS, Head, HeadConfig
from jaxvl.models.heads.base import one_width
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@HEADS.register("token_map")
@dataclasses.dataclass(frozen=True)
class TokenMapConfig(HeadConfig):
    """A linear map of every token, unit vectors [B, T, D]."""

    dim: int = 8

    def build(self, inputs, rngs, dtype=jnp.float32):
        return TokenMap(self, one_width(inputs), rngs, dtype)


class TokenMap(Head):
    def __init__(self, config: TokenMapConfig, width: int, rngs: nnx.Rngs, dtype: Any):
        self.map = Linear(width, config.dim, axes=("embed", "joint"), rngs=rngs, dtype=dtype)
        self.names = config.names

    def __call__(self, encoded, batch, *, train, key, progress):
        return {self.names[n]: l2_normalize(self.map(e.tokens)) for n, e in encoded.items()}


@OBJECTIVES.register("token_match")
@dataclasses.dataclass(frozen=True)
class TokenMatch(Objective):
    reads: ClassVar[tuple[str, ...]] = ("tokens/image", "tokens/text")

    def __call__(self, outputs, batch, state, context):
        best = lambda x, y: 10 * jnp.einsum("ipd,jtd->ijpt", x, y).max(-1).mean(-1)
        pair = (outputs["tokens/image"], outputs["tokens/text"])
        return Loss(streamed_scores(best, *pair, CrossEntropy(Diagonal()), 8).loss()), state
