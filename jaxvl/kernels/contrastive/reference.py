"""The losses written out as `[M, N]` matrices, gradients by autodiff. The oracle.

float64 inputs (with `jax_enable_x64`) are computed in float64 throughout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive import tiles
from jaxvl.kernels.contrastive.targets import Terms


def softmax_sums(
    u: jax.Array, v: jax.Array, scale: jax.Array, terms: Terms
) -> tuple[jax.Array, jax.Array]:
    """Losses of every row `[M]` and column `[N]`: cross-entropy of the target distribution with the
    softmax.

    Args:
      u, v: Float[M D], Float[N D].
      scale: Float[""], multiplies the dot products.
      terms: lowered targets.
    """
    rows = tiles.as_rows(terms.rows)
    cols = tiles.as_cols(terms.cols)
    form = terms.form
    logits = scale * tiles.matmul(u, v, (1, 1))
    w, positive = tiles.positives(rows, cols, form)
    keep = tiles.competing(rows, cols, form, positive)
    keep = jnp.ones(logits.shape, bool) if keep is None else keep
    z = tiles.matmul(rows["teacher"], cols["teacher"], (1, 1)) if form.soft else None

    def direction(axis, side, soft_weight):
        competing = jnp.where(keep, logits, tiles.lowest(logits.dtype))
        log_p = logits - jax.nn.logsumexp(competing, axis, keepdims=True)
        target = w * side["norm"]
        if form.soft == "softmax":
            target += soft_weight * jnp.where(
                keep, jax.nn.softmax(jnp.where(keep, z, tiles.lowest(z.dtype)), axis), 0.0
            )
        elif form.soft == "linear":
            values = jnp.where(keep, form.linear[0] + form.linear[1] * z, 0.0)
            total = jnp.sum(values, axis, keepdims=True)
            target += soft_weight * values / jnp.where(total == 0, 1.0, total)
        uniform = side["total"] * keep / jnp.maximum(keep.sum(axis, keepdims=True), 1)
        target = (1.0 - form.smoothing) * target + form.smoothing * uniform
        return -jnp.sum(jnp.where(keep, target * log_p, 0.0), axis)

    return direction(1, rows, form.soft_weights[0]), direction(0, cols, form.soft_weights[1])


def sigmoid_sums(
    u: jax.Array, v: jax.Array, scale: jax.Array, bias: jax.Array, terms: Terms
) -> jax.Array:
    """Sum over the columns of each row's binary cross-entropies, `[M]`."""
    logits = scale * tiles.matmul(u, v, (1, 1)) + bias
    y, keep = tiles.sigmoid_targets(
        tiles.as_rows(terms.rows), tiles.as_cols(terms.cols), terms.form
    )
    loss = -(y * jax.nn.log_sigmoid(logits) + (1.0 - y) * jax.nn.log_sigmoid(-logits))
    return jnp.sum(loss if keep is None else jnp.where(keep, loss, 0.0), 1)


def sums(
    u: jax.Array, v: jax.Array, scale: jax.Array, bias: jax.Array, terms: Terms, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Sums of the row and column losses."""
    if kind == "softmax":
        row, col = softmax_sums(u, v, scale, terms)
        return jnp.sum(row), jnp.sum(col)
    total = jnp.sum(sigmoid_sums(u, v, scale, bias, terms))
    return total, total
