"""From a sequence [B, T, D] to one vector per row [B, D]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.activations import Activation
from jaxvl.nn.attention import Attention, AttentionOptions
from jaxvl.nn.linear import normal, xavier
from jaxvl.nn.mlp import Mlp, MlpOptions
from jaxvl.nn.norms import LayerNorm


def first(x: jax.Array) -> jax.Array:
    """The first token (class token, [CLS])."""
    return x[:, 0]


def mean(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean over the tokens that `mask` (bool [B, T]) allows; zeros for a row that has none."""
    if mask is None:
        return x.mean(1)
    weight = mask[..., None].astype(jnp.float32)
    total = (x.astype(jnp.float32) * weight).sum(1)
    return (total / jnp.maximum(weight.sum(1), 1)).astype(x.dtype)


def last(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The last token that `mask` allows; without a mask the last position, whatever stands there
    (SigLIP)."""
    if mask is None:
        return x[:, -1]
    position = jnp.where(mask, jnp.arange(x.shape[1]), 0).max(1)
    return _at(x, position)


def eos(x: jax.Array, tokens: jax.Array, eos_id: int) -> jax.Array:
    """The first EOS token (CLIP); the last position of a row without one.

    Args:
      x: [B, T, D]. tokens: int [B, T].
    """
    found = tokens == eos_id
    return _at(x, jnp.where(found.any(1), found.argmax(1), x.shape[1] - 1))


def argmax(x: jax.Array, tokens: jax.Array) -> jax.Array:
    """The first of the tokens whose id, int [B, T], is the row's largest (CLIP's own code)."""
    return _at(x, tokens.argmax(1))


def _at(x: jax.Array, position: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, position[:, None, None], axis=1)[:, 0]


class QueryPooler(nnx.Module):
    """Learned queries attend to a sequence once: CoCa's attentional pooler (Yu et al. 2022, section
    3.2).

    Layer norms on the queries, on the sequence and, with `norm`, on the result; no residual, no
    MLP.

    Args:
      queries: N. width, heads: D and H of the result. memory_width: of the sequence.
    """

    def __init__(
        self,
        queries: int,
        width: int,
        heads: int,
        *,
        memory_width: int,
        rngs: nnx.Rngs,
        norm: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
    ):
        self.query = nnx.Param(
            normal(1.0)(rngs.params(), (queries, width), jnp.float32), axes=("length", "embed")
        )
        self.query_norm = LayerNorm(width, eps=eps, dtype=dtype)
        self.memory_norm = LayerNorm(memory_width, eps=eps, dtype=dtype)
        options = AttentionOptions(eps=eps)
        self.attention = Attention(
            width, heads, memory_width=memory_width, rngs=rngs, options=options, dtype=dtype
        )
        self.norm = LayerNorm(width, eps=eps, dtype=dtype) if norm else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, T, D'] -> [B, N, D].

        Args:
          mask: bool [B, T], True where the sequence may be seen. A single query may be given [B, N,
            T] instead: N results of it, each of its own part.
        """
        query = self.query_norm(self.query[...])
        n = mask.shape[1] if mask is not None and mask.ndim == 3 else len(query)
        query = jnp.broadcast_to(query, (x.shape[0], n, query.shape[1]))
        return self._normed(self.attention(query, self.memory_norm(x), mask=mask))

    def alone(self, x: jax.Array) -> jax.Array:
        """[B, T, D'] -> [B, T, D]: the result if each token were all that there is, whatever the
        query (its weight is 1)."""
        return self._normed(self.attention.out(self.attention.value(self.memory_norm(x))))

    def _normed(self, y: jax.Array) -> jax.Array:
        return y if self.norm is None else self.norm(y)


class MapPooler(nnx.Module):
    """Multi-head attention pooling: one learned query attends to the sequence, then a residual MLP.

    As in Zhai et al. 2022 (Scaling vision transformers) and SigLIP: `y = a + mlp(norm(a))`, `a =
    attention(query, x)`.

    Args:
      width, heads, hidden: D, H, F.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
    ):
        self.query = nnx.Param(
            xavier(rngs.params(), (1, width), jnp.float32), axes=("length", "embed")
        )
        self.attention = Attention(width, heads, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(width, eps=eps, dtype=dtype)
        options = MlpOptions(activation=activation)
        self.mlp = Mlp(width, hidden, rngs=rngs, options=options, dtype=dtype)
        self.dtype = dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, D], mask bool [B, T] or None -> [B, D]."""
        # Its parameters' gradients before that of x goes back: the compiler would leave them for
        # the end, and keep x and its keys and values for them.
        graph, state = nnx.split(self)
        state, x = jax.lax.optimization_barrier((state, x))
        return nnx.merge(graph, state)._pooled(x, mask)

    def _pooled(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        query = jnp.broadcast_to(
            self.query[...].astype(self.dtype), (x.shape[0], *self.query.shape)
        )
        y = self.attention(query, x, mask=mask)
        return (y + self.mlp(self.norm(y)))[:, 0]
