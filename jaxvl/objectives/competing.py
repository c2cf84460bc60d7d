"""Sums over the pairs that compete, for losses that add positives of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive import Targets, contrastive_logsumexp


def competing(
    u: jax.Array,
    v: jax.Array,
    log_scale: jax.Array,
    targets: Targets,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`contrastive_logsumexp` of rows [M] and of columns [N]; a low number where nothing competes,
    for the gradient of -inf would be NaN."""
    how = dict(targets=targets, implementation=implementation)
    sides = contrastive_logsumexp(u, v, log_scale, **how)
    rows, columns = (jnp.maximum(x, jnp.finfo(x.dtype).min / 2) for x in sides)
    return rows, columns
