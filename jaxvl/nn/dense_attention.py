"""Attention whose weights [B, H, T, N] lie in memory; its backward pass keeps one such array."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dense_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, causal: bool
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, with logits and softmax in float32.

    The numbers are those of `jax.nn.dot_product_attention`. The backward pass keeps the weights in
    the dtype of q; JAX's own rules keep two or three float32 arrays of that size. Reverse mode
    only, as every `jax.custom_vjp`.

    Args:
      q: [B, T, H, K]. k, v: [B, N, H, K].
      mask: bool, broadcastable to [B, H, T, N], True where a key may be seen.
      causal: position t sees 0 … t only; together with `mask`, both must allow.

    Returns:
      [B, T, H, K].
    """
    return _forward(q, k, v, mask, causal)[0]


def _forward(q, k, v, mask, causal):
    logits = jnp.einsum("BTHK,BNHK->BHTN", q, k, preferred_element_type=jnp.float32)
    logits = logits * _scale(q)
    if causal:
        past = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = past if mask is None else mask & past
    if mask is not None:
        logits = jnp.where(mask, logits, 0.7 * jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("BHTN,BNHK->BTHK", weights, v), (q, k, v, weights)


def _backward(causal, saved, dy):
    q, k, v, weights = saved
    dv = jnp.einsum("BHTN,BTHK->BNHK", weights, dy)
    dweights = jnp.einsum("BTHK,BNHK->BHTN", dy, v).astype(jnp.float32)
    # Of softmax. Where nothing may be seen the weight is 0, and so is the gradient.
    along = (dweights * weights).sum(-1, keepdims=True)
    # Not rounded: a TPU's products do that as they read it, without an array of float32.
    dlogits = weights * (dweights - along) * _scale(q)
    dq = jnp.einsum("BHTN,BNHK->BTHK", dlogits, k).astype(q.dtype)
    dk = jnp.einsum("BHTN,BTHK->BNHK", dlogits, q).astype(k.dtype)
    return dq, dk, dv, None


def _scale(q: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(jnp.float32(q.shape[-1]))


dense_attention.defvjp(_forward, _backward)
