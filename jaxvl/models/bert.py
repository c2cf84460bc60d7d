"""BERT (Devlin et al. 2019; small sizes from Turc et al. 2019) as a text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Count, Depth, Epsilon, Heads, Hidden, Width, check
from jaxvl.models import TEXT_ENCODERS
from jaxvl.models.base import Encoded, EncoderConfig, InputSpec, check_rates, sizes_of
from jaxvl.nn import poolers
from jaxvl.nn.activations import Activation
from jaxvl.nn.attend import Implementation
from jaxvl.nn.linear import Embedding, Linear, normal
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.quantized import Quantize, check_quantize
from jaxvl.nn.random import dropout
from jaxvl.nn.transformer import Remat, Sizes, StackOptions, Transformer

BERT_SIZES: Mapping[str, Sizes] = {
    "tiny": Sizes(128, 2, 2, 512),
    "mini": Sizes(256, 4, 4, 1024),
    "small": Sizes(512, 4, 8, 2048),
    "medium": Sizes(512, 8, 8, 2048),
    "base": Sizes(768, 12, 12, 3072),
    "large": Sizes(1024, 24, 16, 4096),
}
_INIT_STD = 0.02


@TEXT_ENCODERS.register("bert")
@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """BERT: post-norm, token types, exact GELU.

    Attributes:
      variant: tiny, mini, small, medium, base or large.
      width, depth, heads, hidden: instead of the variant's.
      pool: `cls` (the first token's state, as ALIGN has it), `pooler` (that through BERT's dense
        layer and tanh), or `mean` over the tokens that are not padding.
      positions: rows of the position table.
      types: rows of the token-type table; a single text is all type 0.
      activation, eps, scan, remat, attention, quantize: see `nn.transformer.StackOptions`.
      dropout: on the embeddings and the output of each branch.
      attention_dropout: on the attention weights; a rate > 0 computes them explicitly in training.
    """

    variant: str = "base"
    width: Width | None = None
    depth: Depth | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    pool: Literal["cls", "pooler", "mean"] = "cls"
    positions: Count = 512
    types: Count = 2
    activation: Activation = "gelu"
    eps: Epsilon = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    scan: bool = True
    remat: Remat = "none"
    attention: Implementation = "auto"
    quantize: Quantize | None = None

    def __post_init__(self):
        check_quantize(self.quantize)
        check_rates(self, "dropout", "attention_dropout")
        check(self.types >= 1, "types", f"{self.types!r} must be >= 1")
        _ = self.sizes

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self, self.variant, BERT_SIZES)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.sizes.width

    def options(self) -> StackOptions:
        return StackOptions(
            norm="post",
            activation=self.activation,
            eps=self.eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            init_std=_INIT_STD,
            scan=self.scan,
            remat=self.remat,
            attention=self.attention,
            quantize=self.quantize,
        )

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where texts are longer than the position table."""
        check(
            inputs.text_length <= self.positions,
            "positions",
            f"{self.positions} rows are fewer than the text length of {inputs.text_length}",
        )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Bert:
        return Bert(self, inputs, rngs=rngs, dtype=dtype)


class Bert(nnx.Module):
    """int [B, T] -> `Encoded` with pooled [B, D].

    Args:
      config: see `BertConfig`. inputs: fixes vocabulary and padding.
    """

    def __init__(
        self,
        config: BertConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        sizes = config.sizes
        init = normal(_INIT_STD)
        self.words = Embedding(inputs.vocab_size, sizes.width, rngs=rngs, init=init, dtype=dtype)
        self.positions = nnx.Param(
            init(rngs.params(), (config.positions, sizes.width), jnp.float32),
            axes=("length", "embed"),
        )
        self.types = Embedding(
            config.types, sizes.width, axes=("length", "embed"), rngs=rngs, init=init, dtype=dtype
        )
        self.norm = LayerNorm(sizes.width, eps=config.eps, dtype=dtype)
        self.transformer = Transformer(sizes, config.options(), rngs=rngs, dtype=dtype)
        pooler = dict(axes=("embed", "mlp"), rngs=rngs, init=init, dtype=dtype)
        self.pooler = (
            Linear(sizes.width, sizes.width, **pooler) if config.pool == "pooler" else None
        )
        self.pool = config.pool
        self.dropout = config.dropout
        self.pad_id = inputs.pad_id
        self.width = sizes.width
        self.dtype = dtype

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """tokens int [B, T], padding at the end. Raises ValueError in training without a key if
        anything drops."""
        mask = tokens != self.pad_id
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = (
            self.words(tokens)
            + self.positions[: tokens.shape[1]].astype(self.dtype)
            + self.types.embedding[0].astype(self.dtype)
        )
        x = dropout(self.norm(x), self.dropout, embed_key, train=train)
        x = self.transformer(x, mask=mask, train=train, key=stack_key)
        if self.pool == "mean":
            return Encoded(poolers.mean(x, mask), x, mask)
        pooled = poolers.first(x)
        return Encoded(pooled if self.pooler is None else jnp.tanh(self.pooler(pooled)), x, mask)
