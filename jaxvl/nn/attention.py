"""Multi-head attention."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxvl.nn.attend import Implementation, attend
from jaxvl.nn.linear import Initializer, Linear, xavier
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.quantized import Quantize
from jaxvl.nn.random import dropout
from jaxvl.nn.stack import ATTENTION_OUTPUT

KeyValue = tuple[jax.Array, jax.Array]  # keys and values [B, N, H, K]


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """How an attention is built and run.

    Attributes:
      bias: of the four maps.
      qk_norm: layer norm of queries and keys over K before the product (Dehghani et al. 2023).
      dropout: rate on the attention weights (BERT). The fused product has none, so that a rate > 0
        computes the weights explicitly in training.
      eps: of the layer norms.
      init: of the four kernels.
      implementation: see `nn.attend`: `auto` takes a kernel of the platform for long sequences.
      quantize: of the four products, see `nn.quantized`.
      grouped: rows lie on the mesh as the rows of a stack that has experts.
    """

    bias: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    eps: float = 1e-6
    init: Initializer = xavier
    implementation: Implementation = "auto"
    quantize: Quantize | None = None
    grouped: bool = False


class Attention(nnx.Module):
    """Multi-head attention, of a sequence to itself or to a memory.

    Args:
      width, heads: D and H; K = D / H.
      memory_width: of the sequence that is attended to; None: `width`.

    Attributes:
      adapter: label -> `nn.prompts.Prefix`, keys and values before those of the memory; None
        without.

    Raises:
      ValueError: heads do not divide the width.
    """

    adapter: nnx.Dict | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        memory_width: int | None = None,
        options: AttentionOptions = AttentionOptions(),
        dtype: DTypeLike = jnp.float32,
    ):
        if width % heads:
            raise ValueError(f"heads: {heads} must divide the width of {width}")
        split_axes = ("embed", "heads", "kv")
        split_heads = (heads, width // heads)
        how = dict(bias=options.bias, rngs=rngs, init=options.init, dtype=dtype)
        how["quantize"] = options.quantize
        self.query = Linear(width, split_heads, axes=split_axes, **how)
        self.key = Linear(memory_width or width, split_heads, axes=split_axes, **how)
        self.value = Linear(memory_width or width, split_heads, axes=split_axes, **how)
        self.out = Linear(split_heads, width, axes=("heads", "kv", "embed"), **how)
        norm = functools.partial(
            LayerNorm, width // heads, eps=options.eps, bias=False, dtype=dtype
        )
        self.query_norm = norm() if options.qk_norm else None
        self.key_norm = norm() if options.qk_norm else None
        self.dropout = options.dropout
        self.implementation = options.implementation
        self.grouped = options.grouped

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, T, D], the queries' side.
          memory: [B, N, D'] that is attended to; None: x itself.
          mask: bool [B, N], True where the memory may be seen (padding is False); or [B, T, N], of
            each position of x.
          causal: position t sees 0 … t only; together with `mask`, both must allow.

        Returns:
          [B, T, D].
        """
        k, v = self.project_kv(x if memory is None else memory)
        q = self.project_q(x)
        if mask is not None:
            mask = jnp.expand_dims(mask, (1, 2) if mask.ndim == 2 else 1)
        if self.adapter is not None:
            if causal:
                past = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None]
                mask = past if mask is None else mask & past
                causal = False
            k, v, mask = self._with_prefix(k, v, mask)
        if train and self.dropout:
            y = _attend_with_dropout(q, k, v, mask, causal, self.dropout, key)
        else:
            how = dict(implementation=self.implementation, grouped=self.grouped)
            y = attend(q, k, v, mask, causal=causal, **how)
        return self.out(y)

    def project_q(self, x: jax.Array) -> jax.Array:
        """Queries [B, T, H, K]."""
        q = self.query(x)
        return q if self.query_norm is None else self.query_norm(q)

    def _with_prefix(
        self, k: jax.Array, v: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Keys, values [B, N, H, K] and a mask [B, 1 or H, T, N] with the prefixes of adapters in
        front, which all positions see."""
        for prefix in self.adapter.values():
            k, v, mask = prefix(k, v, mask)
        return k, v, mask

    def project_kv(self, memory: jax.Array) -> KeyValue:
        """Keys and values [B, N, H, K] of a memory [B, N, D'], to be attended to by `decode`."""
        k = self.key(memory)
        return k if self.key_norm is None else self.key_norm(k), self.value(memory)

    def decode(
        self, x: jax.Array, kv_cache: KeyValue, position: jax.Array | None = None
    ) -> tuple[jax.Array, KeyValue]:
        """One position of a sequence that grows token by token.

        Args:
          x: [B, 1, D].
          kv_cache: keys and values [B, N, H, K]. Of a memory [A, N, H, K], where the first B / A
            rows of x read its first row, and so on: nothing is repeated for captions of one image.
          position: int []: of x. Its own key and value are written there, and later ones are not
            seen. None: `kv_cache` is a memory of which all is seen.

        Returns:
          [B, 1, D], and `kv_cache` with x in it.
        """
        q = self.project_q(x)
        mask = None
        if position is None:
            q = q.reshape(kv_cache[0].shape[0], -1, *q.shape[2:])
        else:
            kv_cache = tuple(
                jax.lax.dynamic_update_slice_in_dim(a, new.astype(a.dtype), position, 1)
                for a, new in zip(kv_cache, self.project_kv(x))
            )
            mask = (jnp.arange(kv_cache[0].shape[1]) <= position)[None, None, None, :]
        seen = (*kv_cache, mask) if self.adapter is None else self._with_prefix(*kv_cache, mask)
        y = jax.nn.dot_product_attention(q, *seen[:2], mask=seen[2])
        return self.out(y.reshape(x.shape[0], 1, *y.shape[2:])), kv_cache


def _attend_with_dropout(q, k, v, mask, causal: bool, rate: float, key) -> jax.Array:
    """q [B, T, H, K], k and v [B, N, H, K] -> [B, T, H, K], with dropout of the attention
    weights."""
    logits = jnp.einsum("BTHK,BNHK->BHTN", q, k, preferred_element_type=jnp.float32) / jnp.sqrt(
        jnp.float32(q.shape[-1])
    )
    seen = jnp.ones(logits.shape[-2:], bool)
    seen = jnp.tril(seen) if causal else seen
    seen = seen if mask is None else seen & mask
    weights = jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(jnp.float32).min), axis=-1).astype(
        q.dtype
    )
    y = jnp.einsum("BHTN,BNHK->BTHK", dropout(weights, rate, key, train=True), v)
    return checkpoint_name(y, ATTENTION_OUTPUT)
