"""Projectors of a frozen encoder's vector and of its tokens, added up ("From unimodal to
multimodal", Maniparambil et al. 2024, arXiv 2409.19425, section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Width, check
from jaxvl.models.base import Encoded, check_rates
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn import poolers
from jaxvl.nn.activations import ACTIVATIONS
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.random import dropout, split

Kind = Literal["patch", "mlp", "none"]


@HEADS.register("token_projector")
@dataclasses.dataclass(frozen=True)
class TokenProjectorConfig(HeadConfig):
    """A perceptron of the pooled vector p and one of every token t_i, each input with its own.

        z = g(p) + mean_i f(t_i),  over tokens that are none of padding;  the output is z / |z|

        patch: x = dropout(layer_norm(x));  f(x) = A x + a + W_2 gelu(W_1 x + b_1) + b_2
        mlp:   h = W_1 x + b_1;             f(x) = layer_norm(h + dropout(W_2 gelu(h) + b_2))

    As in the release (mayug/freeze-align); there a text is `order="after"`: z = g(mean_i f(t_i)).

    Attributes:
      dim: E of the output, and of hidden layers.
      tokens, pooled: kind of f and of g; `none`: that part is left out.
      order: `sum`, or `after`: g is of the mean of the tokens' projections.
      dropout: rate, 0.1 as in the release.
    """

    dim: Width = 1024
    tokens: Kind = "patch"
    pooled: Kind = "patch"
    order: Literal["sum", "after"] = "sum"
    dropout: float = 0.1

    any_widths: ClassVar[bool] = True

    def __post_init__(self):
        check_rates(self, "dropout")
        parts = (self.tokens, self.pooled)
        check(parts != ("none", "none"), "tokens", "'none', as pooled; one must be a perceptron")
        check(
            self.order == "sum" or "none" not in parts,
            "order",
            f"{self.order!r} needs perceptrons of tokens and of their mean; neither may be 'none'",
        )

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        return {name: self.dim for name in self.names.values()}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return TokenProjector(self, inputs, rngs=rngs, dtype=dtype)


class TokenProjector(Head):
    """See `TokenProjectorConfig`."""

    def __init__(
        self,
        config: TokenProjectorConfig,
        inputs: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        def perceptrons(kind: Kind, chained: bool) -> nnx.Dict:
            modules = {}
            for source, width in inputs.items():
                width = config.dim if chained else width
                if kind != "none":
                    modules[config.parts[source]] = ResidualPerceptron(
                        kind, width, config.dim, config.dropout, rngs=rngs, dtype=dtype
                    )
            return nnx.Dict(modules)

        self.tokens = perceptrons(config.tokens, False)
        self.pooled = perceptrons(config.pooled, config.order == "after")
        self.chained = config.order == "after"
        self.names = config.names
        self.parts = config.parts

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Unit rows float32 [B, E] for each input."""
        del batch, progress
        outputs = {}
        for number, (source, value) in enumerate(sorted(encoded.items())):
            own = None if key is None else jax.random.fold_in(key, number)
            row = self._row(self.parts[source], value, train, own)
            outputs[self.names[source]] = l2_normalize(row)
        return outputs

    def _row(self, name: str, value: Encoded, train: bool, key: jax.Array | None) -> jax.Array:
        of_tokens, of_pooled = split(key, 2)
        row = jnp.float32(0)
        if name in self.tokens:
            projected = self.tokens[name](value.tokens, train=train, key=of_tokens)
            row = poolers.mean(projected.astype(jnp.float32), value.mask)
        if name not in self.pooled:
            return row
        given = row if self.chained else value.pooled
        projected = self.pooled[name](given, train=train, key=of_pooled).astype(jnp.float32)
        return projected if self.chained else row + projected


class ResidualPerceptron(nnx.Module):
    """One hidden layer with a way round it; see `TokenProjectorConfig`.

    Args:
      width, dim: D and E.
    """

    def __init__(
        self, kind: Kind, width: int, dim: int, rate: float, *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        linear = lambda inputs, axes: Linear(inputs, dim, axes=axes, rngs=rngs, dtype=dtype)
        patch = kind == "patch"
        self.norm = LayerNorm(width if patch else dim, eps=1e-5, dtype=dtype)
        self.up = linear(width, ("embed", "mlp"))
        self.down = linear(dim, ("mlp", "joint"))
        self.straight = linear(width, ("embed", "joint")) if patch else None
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """[..., D] -> [..., E]."""
        gelu = ACTIVATIONS["gelu"]
        if self.straight is not None:
            x = dropout(self.norm(x), self.rate, key, train=train)
            return self.straight(x) + self.down(gelu(self.up(x)))
        hidden = self.up(x)
        change = dropout(self.down(gelu(hidden)), self.rate, key, train=train)
        return self.norm(hidden + change)
