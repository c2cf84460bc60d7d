"""Text transformer, causal or bidirectional, CLIP- and SigLIP-shaped included."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Count, Depth, Epsilon, Heads, Hidden, Width, check
from jaxvl.models import TEXT_ENCODERS
from jaxvl.models.base import (
    SIZES,
    Encoded,
    EncoderConfig,
    InputSpec,
    check_moe,
    check_rates,
    sizes_of,
)
from jaxvl.nn import poolers
from jaxvl.nn.activations import Activation
from jaxvl.nn.attend import Implementation
from jaxvl.nn.linear import Embedding, normal
from jaxvl.nn.moe import MoeConfig, MoeInputs
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.quantized import Quantize, check_quantize
from jaxvl.nn.random import dropout
from jaxvl.nn.transformer import Remat, Sizes, StackOptions, Transformer


@TEXT_ENCODERS.register("text_transformer")
@dataclasses.dataclass(frozen=True)
class TextTransformerConfig(EncoderConfig):
    """Pre-norm transformer over tokens.

    Attributes:
      variant: size: Ti, S, M (CLIP's texts beside ViT-B), B, L, So400m, H, g, G.
      width, depth, heads, hidden: instead of the variant's.
      causal: position t sees 0 … t only.
      mask_padding: whether padding is hidden from attention and pooling. SigLIP has none of it:
        padding is seen, and `last` is the last position.
      pool: `eos` (first EOS token), `argmax` (first of the largest token id, which is EOS in CLIP's
        vocabulary), `last`, `cls` (first token), `mean`, or `map` (attention with a learned query).
      positions: rows of the position table; None: the text length that the model is built for.
      activation, eps, qk_norm, drop_path, scan, remat, attention, quantize: see
        `nn.transformer.StackOptions`.
      dropout: on the embeddings and the output of each branch.
      moe: mixtures of experts in place of some MLPs, see `nn.moe.MoeConfig`; their losses are for
        the objective `routing`.
    """

    variant: str = "B"
    width: Width | None = None
    depth: Depth | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    causal: bool = False
    mask_padding: bool = True
    pool: Literal["eos", "argmax", "last", "cls", "mean", "map"] = "map"
    positions: Count | None = None
    activation: Activation = "gelu_tanh"
    eps: Epsilon = 1e-6
    qk_norm: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = True
    remat: Remat = "none"
    attention: Implementation = "auto"
    quantize: Quantize | None = None
    moe: MoeConfig | None = None

    def __post_init__(self):
        check_quantize(self.quantize)
        check_rates(self, "dropout", "drop_path")
        check(
            not (self.causal and self.pool == "cls"),
            "pool",
            "'cls': under causal attention the first token sees nothing but itself",
        )
        check_moe(self, causal=self.causal)

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self, self.variant, SIZES)

    @property
    def routed(self) -> bool:
        return self.moe is not None

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.sizes.width

    def options(self) -> StackOptions:
        return StackOptions(
            activation=self.activation,
            eps=self.eps,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            drop_path=self.drop_path,
            scan=self.scan,
            remat=self.remat,
            attention=self.attention,
            quantize=self.quantize,
            moe=self.moe,
        )

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where texts are longer than the position table, or have no EOS to
        pool."""
        rows = self.positions
        length = inputs.text_length
        check(
            rows is None or length <= rows,
            "positions",
            f"{rows!r} rows are fewer than the text length of {length}",
        )
        check(
            self.pool != "eos" or inputs.eos_id is not None,
            "pool",
            "'eos' needs a tokenizer with an EOS token; use last, cls, mean or map",
        )

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> TextTransformer:
        return TextTransformer(self, inputs, rngs=rngs, dtype=dtype)


class TextTransformer(nnx.Module):
    """int [B, T] -> `Encoded` with pooled [B, D].

    Args:
      config: see `TextTransformerConfig`. inputs: fixes vocabulary, length, padding and EOS.
    """

    def __init__(
        self,
        config: TextTransformerConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        sizes = config.sizes
        rows = config.positions or inputs.text_length
        self.words = Embedding(inputs.vocab_size, sizes.width, rngs=rngs, dtype=dtype)
        self.positions = nnx.Param(
            normal(0.01)(rngs.params(), (rows, sizes.width), jnp.float32), axes=("length", "embed")
        )
        self.transformer = Transformer(sizes, config.options(), rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(sizes.width, eps=config.eps, dtype=dtype)
        pooler = dict(activation=config.activation, eps=config.eps, rngs=rngs, dtype=dtype)
        self.pooler = (
            poolers.MapPooler(sizes.width, sizes.heads, sizes.hidden, **pooler)
            if config.pool == "map"
            else None
        )
        self.config = config
        self.pad_id = inputs.pad_id
        self.eos_id = inputs.eos_id
        self.width = sizes.width
        self.dtype = dtype

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """tokens int [B, T], padding at the end. Raises ValueError in training without a key if
        anything drops."""
        mask = tokens != self.pad_id if self.config.mask_padding else None
        if (
            mask is not None and self.eos_id == self.pad_id
        ):  # CLIP's later tokenizers pad with EOS: the first one counts
            mask = mask | (jnp.cumsum(~mask, axis=1) == 1)
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = self.words(tokens) + self.positions[: tokens.shape[1]].astype(self.dtype)
        x = dropout(x, self.config.dropout, embed_key, train=train)
        # Under causal attention no token before the padding sees it anyway.
        seen = None if self.config.causal else mask
        routed = self.transformer.routed(
            x,
            mask=seen,
            moe_inputs=MoeInputs(real=mask),
            causal=self.config.causal,
            train=train,
            key=stack_key,
        )
        x = self.norm(routed.y)
        return Encoded(self._pool(x, tokens, mask), x, mask, routed.by_row() or None)

    def _pool(self, x: jax.Array, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        pool = self.config.pool
        if pool == "eos":
            return poolers.eos(x, tokens, self.eos_id)
        if pool == "argmax":
            return poolers.argmax(x, tokens)
        if pool == "cls":
            return poolers.first(x)
        return {"last": poolers.last, "mean": poolers.mean, "map": self.pooler}[pool](x, mask)
