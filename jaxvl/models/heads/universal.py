"""One light transformer for every modality, which a token tells apart (OneEncoder, Faye et al.
2024, arXiv 2409.11059)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, Hidden, Width, check
from jaxvl.config import Heads as HeadCount
from jaxvl.models.base import Encoded, check_rates
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn import poolers
from jaxvl.nn.activations import ACTIVATIONS
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.random import dropout, split
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer


@HEADS.register("universal")
@dataclasses.dataclass(frozen=True)
class UniversalConfig(HeadConfig):
    """The universal projection UP of tokens x of a modality m, after an alignment layer of its own.

        z = layer_norm(dropout(W_2 gelu(W_1 x + b_1) + b_2))                     the alignment layer
        h_i = z_i + t_m                                                          `add`
        h_i = z_i + sum_j softmax_j(q(t_m) . k(z_j) / sqrt(D)) v(z_j)            `cross`
        u = transformer(layer_norm(h)) + h;  the output is mean_i u_i, of length 1

    As in the release (b-faye/OneEncoder: projection_dim 768, 4 post-norm layers of 4 heads, ReLU).
    There padding is read as other tokens are; here it is not.

    Parameters: `align/NAME` and `token/NAME` of each input, and `shared/…`, which is UP. A new
    modality is a further name in `reads`; `start` takes the rest, and `optim.freeze` keeps it:

        freeze=r"^(?!heads/joint/(align|token)/NAME(/|$))", fresh=r"^heads/joint/(align|token)/NAME"

    Attributes:
      dim: D, of UP and of the output.
      fusion: how the modality's token comes in.
      depth, heads, hidden: of UP's layers.
      dropout: rate, of alignment layers and of UP.
    """

    dim: Width = 768
    fusion: Literal["add", "cross"] = "add"
    depth: Depth = 4
    heads: HeadCount = 4
    hidden: Hidden = 2048
    dropout: float = 0.1

    any_widths: ClassVar[bool] = True

    def __post_init__(self):
        check_rates(self, "dropout")
        fits = self.dim % self.heads == 0
        check(fits, "heads", f"{self.heads!r} must divide dim = {self.dim}")

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        return {name: self.dim for name in self.names.values()}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Universal(self, inputs, rngs=rngs, dtype=dtype)


class Universal(Head):
    """See `UniversalConfig`."""

    def __init__(
        self,
        config: UniversalConfig,
        inputs: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        # UP first, so that it is drawn alike however many modalities there are.
        self.shared = UniversalProjection(config, rngs=rngs, dtype=dtype)
        self.names = config.names
        self.parts = config.parts
        align = {}
        token = {}
        for source, part in self.parts.items():
            align[part] = AlignmentLayer(config, inputs[source], rngs=rngs, dtype=dtype)
            token[part] = nnx.Param(normal(0.3)(rngs.params(), (config.dim,)), axes=("norm",))
        self.align = nnx.Dict(align)
        self.token = nnx.Dict(token)

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Unit rows float32 [B, D] for each input."""
        del batch, progress
        outputs = {}
        keys = split(key, len(self.names))
        for (source, name), own in zip(self.names.items(), keys):
            if source not in encoded:
                continue
            of_align, of_shared = split(own, 2)
            value = encoded[source]
            tokens = self.align[self.parts[source]](value.tokens, train=train, key=of_align)
            token = self.token[self.parts[source]][...]
            options = dict(train=train, key=of_shared)
            outputs[name] = self.shared(tokens, token, value.mask, **options)
        return outputs


class AlignmentLayer(nnx.Module):
    """A perceptron of every token; see `UniversalConfig`."""

    def __init__(self, config: UniversalConfig, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        options = dict(rngs=rngs, dtype=dtype)
        self.up = Linear(width, config.dim, axes=("embed", "mlp"), **options)
        self.down = Linear(config.dim, config.dim, axes=("mlp", "joint"), **options)
        self.norm = LayerNorm(config.dim, eps=1e-5, dtype=dtype)
        self.rate = config.dropout

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """[B, T, D'] -> [B, T, D]."""
        x = self.down(ACTIVATIONS["gelu"](self.up(x)))
        return self.norm(dropout(x, self.rate, key, train=train))


class UniversalProjection(nnx.Module):
    """UP; see `UniversalConfig`."""

    def __init__(self, config: UniversalConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        dim = config.dim
        rate = config.dropout
        options = StackOptions(
            norm="post",
            activation="relu",
            eps=1e-5,
            dropout=rate,
            hidden_dropout=rate,
            attention_dropout=rate,
        )
        sizes = Sizes(dim, config.depth, config.heads, config.hidden)
        self.transformer = Transformer(sizes, options, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype)
        maps = {}
        if config.fusion == "cross":
            for name in ("query", "key", "value"):
                maps[name] = Linear(dim, dim, axes=("embed", "joint"), rngs=rngs, dtype=dtype)
        self.maps = nnx.Dict(maps)

    def __call__(
        self,
        x: jax.Array,
        token: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        key: jax.Array | None,
    ) -> jax.Array:
        """x [B, T, D], token [D], mask bool [B, T] -> unit rows float32 [B, D]."""
        token = token.astype(x.dtype)
        x = x + (self._asked(x, token, mask) if self.maps else token)
        y = self.transformer(self.norm(x), mask=mask, train=train, key=key) + x
        return l2_normalize(poolers.mean(y.astype(jnp.float32), mask))

    def _asked(self, x: jax.Array, token: jax.Array, mask: jax.Array | None) -> jax.Array:
        """What the token finds among x: [B, 1, D]."""
        query = self.maps["query"](token).astype(jnp.float32)
        keys = self.maps["key"](x).astype(jnp.float32)
        scores = jnp.einsum("d,btd->bt", query, keys) / math.sqrt(x.shape[-1])
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weight = jax.nn.softmax(scores).astype(x.dtype)
        return jnp.einsum("bt,btd->bd", weight, self.maps["value"](x))[:, None]
