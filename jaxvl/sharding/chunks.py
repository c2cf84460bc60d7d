"""A sharded batch in chunks, and back."""

from __future__ import annotations

import jax

from jaxvl.sharding.rules import constrain


def take(x: jax.Array, i: jax.Array, n: int) -> jax.Array:
    """Chunk `i` of `n`: [B, ...] -> [B/n, ...], the rows i, i + n, i + 2n …

    Every device's rows are dealt over all chunks, so that no row changes its device. Only the chunk
    is copied, not the batch.
    """
    x = x.reshape(x.shape[0] // n, n, *x.shape[1:])
    x = constrain(x, "batch", *[None] * (x.ndim - 1))
    chunk = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
    return constrain(chunk, "batch", *[None] * (chunk.ndim - 1))


def join(x: jax.Array) -> jax.Array:
    """All chunks, as a loop over `take` stacks them, as one batch: [n, B/n, ...] -> [B, ...]."""
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return constrain(x, "batch", *[None] * (x.ndim - 1))
