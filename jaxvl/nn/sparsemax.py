"""Sparsemax: the point of the simplex that is nearest to a vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sparsemax(z: jax.Array) -> jax.Array:
    """[…, K] -> float32 [..., K], >= 0 with sum 1 along K, with exact zeros (Martins & Astudillo
    2016, arXiv 1602.02068, algorithm 1).

        p = max(z - t, 0), t = (sum_{j in S} z_j - 1) / |S|, S the largest z with 1 + k z_(k) >
        sum_{j <= k} z_(j)

    Its derivative is that of the paper's equation 14: within S the mean over S is taken away;
    outside it is 0.
    """
    z = z.astype(jnp.float32)
    z = z - jax.lax.stop_gradient(z.max(-1, keepdims=True))
    fixed = jax.lax.stop_gradient(z)
    ordered = -jnp.sort(-fixed, axis=-1)
    sums = jnp.cumsum(ordered, -1)
    ranks = jnp.arange(1, z.shape[-1] + 1)
    count = (1 + ranks * ordered > sums).sum(-1, keepdims=True)
    threshold = (jnp.take_along_axis(sums, count - 1, -1) - 1) / count
    inside = fixed > threshold
    shift = (jnp.where(inside, z, 0.0).sum(-1, keepdims=True) - 1) / inside.sum(-1, keepdims=True)
    return jnp.where(inside, z - shift, 0.0)
