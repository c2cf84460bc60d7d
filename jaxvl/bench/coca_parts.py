"""Parts of CoCa as encoders of a two-tower model, so that `configs/coca_distance.py` can change one
of them at a time. A plugin of that config."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, Heads, Hidden, Range, Width
from jaxvl.models import IMAGE_ENCODERS, TEXT_ENCODERS
from jaxvl.models.base import Encoded, EncoderConfig, InputSpec
from jaxvl.nn.linear import Embedding, normal
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.poolers import QueryPooler
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer


@IMAGE_ENCODERS.register("coca_pooled")
@dataclasses.dataclass(frozen=True)
class CoCaPooledConfig(EncoderConfig):
    """An image encoder whose tokens CoCa's poolers read, instead of its own pooling.

    Attributes:
      encoder: image encoder by name.
      width, heads, queries, poolers: as in `coca`.
    """

    encoder: Annotated[Any, IMAGE_ENCODERS]
    width: Width = 192
    heads: Heads = 4
    queries: Annotated[int, Range(1, 65_536)] = 8
    poolers: Literal["cascade", "parallel"] = "cascade"

    @property
    def features(self) -> int:
        return self.width

    def check_inputs(self, inputs: InputSpec) -> None:
        self.encoder.check_inputs(inputs)

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> CoCaPooled:
        return CoCaPooled(self, inputs, rngs=rngs, dtype=dtype)


class CoCaPooled(nnx.Module):
    """[B, S, S, C] -> `Encoded` with pooled [B, D] and the encoder's tokens."""

    def __init__(
        self,
        config: CoCaPooledConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.encoder = config.encoder.build(inputs, rngs, dtype)
        cascade = config.poolers == "cascade"
        options = dict(rngs=rngs, dtype=dtype)
        self.caption_pooler = (
            QueryPooler(
                config.queries,
                config.width,
                config.heads,
                memory_width=self.encoder.width,
                **options,
            )
            if cascade
            else None
        )
        read = config.width if cascade else self.encoder.width
        self.contrastive_pooler = QueryPooler(
            1, config.width, config.heads, memory_width=read, **options
        )
        self.width = config.width

    def __call__(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        tokens = self.encoder(image, train=train, key=key).tokens
        read = tokens if self.caption_pooler is None else self.caption_pooler(tokens)
        return Encoded(self.contrastive_pooler(read)[:, 0], tokens)


@TEXT_ENCODERS.register("coca_text")
@dataclasses.dataclass(frozen=True)
class CoCaTextConfig(EncoderConfig):
    """CoCa's unimodal layers over [start] w1 … wT [CLS].

    Attributes:
      width, depth, heads, hidden: as in `coca`.
      causal: as in `coca`; False: every token sees the whole text.
    """

    width: Width = 192
    depth: Depth = 1
    heads: Heads = 4
    hidden: Hidden = 512
    causal: bool = True

    @property
    def features(self) -> int:
        return self.width

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> CoCaText:
        return CoCaText(self, inputs, rngs=rngs, dtype=dtype)


class CoCaText(nnx.Module):
    """int [B, T] -> `Encoded` with pooled [B, D], the state of [CLS]."""

    def __init__(
        self,
        config: CoCaTextConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        width = config.width
        self.words = Embedding(inputs.vocab_size, width, rngs=rngs, dtype=dtype)

        def table(*shape: int, axes: tuple[str, ...]) -> nnx.Param:
            return nnx.Param(normal(0.01)(rngs.params(), shape, jnp.float32), axes=axes)

        self.positions = table(inputs.text_length + 2, width, axes=("length", "embed"))
        self.start_token = table(width, axes=("norm",))
        self.class_token = table(width, axes=("norm",))
        sizes = Sizes(width, config.depth, config.heads, config.hidden)
        options = StackOptions(activation="gelu", eps=1e-5, scan=False)
        self.transformer = Transformer(sizes, options, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        self.causal = config.causal
        self.pad_id = inputs.pad_id
        self.width = width
        self.dtype = dtype

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        b, t = tokens.shape
        start, last = (
            jnp.broadcast_to(token[...].astype(self.dtype), (b, 1, self.width))
            for token in (self.start_token, self.class_token)
        )
        always = jnp.ones((b, 1), bool)
        mask = jnp.concatenate([always, tokens != self.pad_id, always], 1)
        positions = jnp.concatenate([self.positions[: t + 1], self.positions[-1:]])
        x = jnp.concatenate([start, self.words(tokens), last], 1) + positions.astype(self.dtype)
        x = self.norm(self.transformer(x, mask=mask, causal=self.causal, train=train, key=key))
        return Encoded(x[:, -1], x, mask)
