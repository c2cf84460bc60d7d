"""Negatives drawn from the similarities of a whole batch, without its B x B matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvl.kernels.contrastive.generic import streamed_scores
from jaxvl.kernels.contrastive.masks import PairMask, Unpaired
from jaxvl.kernels.contrastive.reductions import Top


def draw_negatives(
    u: Float[Array, "B D"],
    v: Float[Array, "B D"],
    scale: Float[Array, ""] | float,
    group: Int[Array, " B"],
    key: jax.Array,
    block: int = 256,
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Draws one negative of each row and of each column, likelier the more similar it is.

        P(column j | row i) = softmax_j(scale u_i . v_j), over the j of another group

    A draw is the largest of `scale u_i . v_j + g_ij` with standard Gumbel noise g (Gumbel 1954), so
    one pass over blocks finds it. The noise of a pair follows from the key and the two places in
    the batch: the same on every mesh, for every block size.

    Args:
      u, v: rows and columns; no gradient goes through them.
      scale: factor of the products.
      group: rows of one group are never drawn for each other; a row is in its own group.
      block: rows and columns of the largest block.

    Returns:
      Column drawn for each row, row drawn for each column: int32 [B]. A row that all others share
      the group of has -1.
    """
    keys = jax.random.key_data(jax.random.split(key))
    score = jax.tree_util.Partial(_noisy, jnp.float32(scale), keys)
    place = jnp.arange(len(u), dtype=jnp.int32)
    targets = PairMask(Unpaired(), row_group=group, col_group=group, drop="same")
    top = streamed_scores(score, (u, place), (v, place), Top(targets), block)
    return jax.lax.stop_gradient((top.row_index, top.col_index))


Rows = tuple[Float[Array, "m D"], Int[Array, " m"]]  # with their places in the batch


def _noisy(
    scale: jax.Array, keys: jax.Array, rows: Rows, cols: Rows
) -> tuple[Float[Array, "m n"], Float[Array, "m n"]]:
    """Scores with the noise of the rows' draws, and with that of the columns' draws."""
    x, i = rows
    y, j = cols
    row_key, col_key = jax.random.wrap_key_data(keys)
    similar = scale * jnp.dot(x, y.T, preferred_element_type=jnp.float32)
    return similar + _noise(row_key, i, j), similar + _noise(col_key, i, j)


def _noise(key: jax.Array, i: Int[Array, " m"], j: Int[Array, " n"]) -> Float[Array, "m n"]:
    """Standard Gumbel noise of pairs (i, j)."""
    of_rows = jax.vmap(jax.random.fold_in, (None, 0))(key, i)
    one = lambda key, j: jax.random.gumbel(jax.random.fold_in(key, j), (), jnp.float32)
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(of_rows, j)
