"""A sharded batch in chunks, and back."""

from __future__ import annotations

import jax

from jaxvl.sharding.rules import constrain


def divide(x: jax.Array, n: int) -> jax.Array:
    """[B, ...] -> [n, B/n, ...] with every device's rows dealt over all chunks, so that no row changes its device."""
    x = x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, "batch", *[None] * (x.ndim - 2))


def join(x: jax.Array) -> jax.Array:
    """Inverse of `divide`."""
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return constrain(x, "batch", *[None] * (x.ndim - 1))
