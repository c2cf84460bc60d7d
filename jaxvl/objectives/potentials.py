"""Gaussian potentials between rows, summed without a matrix of all pairs: what terms of uniformity
and of entropy are made of (Wang & Isola 2020, arXiv 2005.10242)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive import PairMask, Unpaired, contrastive_logsumexp


def log_mean_others(
    x: jax.Array, y: jax.Array, rate: float, implementation: str | None = None
) -> jax.Array:
    """log mean_{i != j} exp(-rate |x_i - y_j|²), float32 [].

    With `y = x` this is the uniformity of `x`.

    Args:
      x, y: [B, D], B >= 2.
      rate: > 0.
      implementation: of `contrastive_logsumexp`.
    """
    b = len(x)
    place = jnp.arange(b, dtype=jnp.int32)
    others = PairMask(Unpaired(), row_group=place, col_group=place, drop="same")
    rows = _log_sums(x, y, rate, others, implementation)
    return jax.nn.logsumexp(rows) - math.log(b * (b - 1))


def mean_log_density(x: jax.Array, rate: float, implementation: str | None = None) -> jax.Array:
    """mean_i log mean_j exp(-rate |x_i - x_j|²), float32 []: minus the entropy of rows [B, D] by a
    kernel density estimate, up to a constant; `j = i` counts."""
    rows = _log_sums(x, x, rate, Unpaired(), implementation)
    return rows.mean() - math.log(len(x))


def _log_sums(
    x: jax.Array,
    y: jax.Array,
    rate: float,
    targets: Unpaired | PairMask,
    implementation: str | None,
) -> jax.Array:
    """log sum_j exp(-rate |x_i - y_j|²) over the pairs that compete, float32 [B].

    -|x - y|² / 2 is the product of (x, -|x|²/2, 1) and (y, 1, -|y|²/2). Rows are moved by their
    common mean first, which changes no distance and keeps the products small.
    """
    x = x.astype(jnp.float32)
    y = y.astype(jnp.float32)
    middle = jax.lax.stop_gradient(x.mean(0) + y.mean(0)) / 2
    x = x - middle
    y = y - middle
    one = jnp.ones((len(x), 1), jnp.float32)
    left = jnp.concatenate([x, -jnp.square(x).sum(1, keepdims=True) / 2, one], 1)
    right = jnp.concatenate([y, one, -jnp.square(y).sum(1, keepdims=True) / 2], 1)
    return contrastive_logsumexp(
        left, right, math.log(2 * rate), targets=targets, implementation=implementation
    )[0]
