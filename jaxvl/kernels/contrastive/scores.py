"""Scores of pairs for `generic.streamed_scores`: functions of a block of rows and one of columns.

Axis letters: m rows, n columns, D width, T tokens, clips or queries.

All are multiplied by `scale` (the inverse temperature, `exp(log_scale)`), which gets its gradient.
Vectors and tokens are normally of unit length. Masks are True where a token counts; a row without
any token scores 0.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.kernels.contrastive import tiles


class Tokens(NamedTuple):
    """A sequence of vectors in each row.

    Attributes:
      tokens: Float[m T D].
      mask: Bool[m T], or None where all count.
    """

    tokens: jax.Array
    mask: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dot:
    """`scale u_i . v_j` of vectors [m, D] and [n, D]."""

    scale: Any = 1.0

    def __call__(self, u: jax.Array, v: jax.Array) -> jax.Array:
        return self.scale * tiles.matmul(u, v, (1, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Multilinear:
    """`scale sum_d a_id b_jd c_jd …` of vectors [m, D] and a tuple of vectors [n, D]: the
    multilinear inner product of Symile (Saporta et al. 2024, arXiv 2411.01053)."""

    scale: Any = 1.0

    def __call__(self, u: jax.Array, v: tuple[jax.Array, ...]) -> jax.Array:
        return self.scale * tiles.matmul(u, functools.reduce(operator.mul, v), (1, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LateInteraction:
    """Every token of one side finds its nearest on the other; the mean or sum of these.

        s_ij = scale mean_t max_t' u_it . v_jt'      of "rows": each row's tokens look for theirs
        s_ij = scale mean_t' max_t u_it . v_jt'      of "columns"

    FILIP (Yao et al. 2022, arXiv 2111.07783, equations 4 and 5) compares the rows by the first and
    the columns by the second ("both"). ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832,
    equation 3) is the sum over the tokens of the query.

    Attributes:
      scale: inverse temperature.
      side: whose tokens look: `both`, `rows` or `columns`.
      pool: `mean` or `sum` over them.
    """

    scale: Any = 1.0
    side: Literal["both", "rows", "columns"] = dataclasses.field(
        default="both", metadata=dict(static=True)
    )
    pool: Literal["mean", "sum"] = dataclasses.field(default="mean", metadata=dict(static=True))

    def __call__(self, u: Tokens, v: Tokens) -> jax.Array | tuple[jax.Array, jax.Array]:
        alike = _products("itd,jsd->ijts", u.tokens, v.tokens)
        u_mask = None if u.mask is None else u.mask[:, None]
        v_mask = None if v.mask is None else v.mask[None]
        of_rows = functools.partial(self._found, alike, u_mask, v_mask)
        of_columns = functools.partial(self._found, alike.swapaxes(2, 3), v_mask, u_mask)
        if self.side == "both":
            return of_rows(), of_columns()
        return of_rows() if self.side == "rows" else of_columns()

    def _found(
        self, alike: jax.Array, looking: jax.Array | None, found: jax.Array | None
    ) -> jax.Array:
        """[m, n] of products [m, n, T, S], where each of T tokens looks for one of S; masks are
        [m, 1, T] or [1, n, T]."""
        if found is None:
            nearest = jnp.max(alike, -1)
        else:
            kept = jnp.where(found[:, :, None], alike, tiles.lowest(alike.dtype))
            nearest = jnp.where(found.any(-1)[:, :, None], jnp.max(kept, -1), 0.0)
        if looking is not None:
            nearest = jnp.where(looking, nearest, 0.0)
        total = self.scale * nearest.sum(-1)
        if self.pool == "sum":
            return total
        count = nearest.shape[-1] if looking is None else jnp.maximum(looking.sum(-1), 1)
        return total / count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionWeighted:
    """A text weighs the clips of a row by how well they fit it (CoLLAP, Wu et al. 2024, arXiv
    2410.02271).

        a_ijk = u_ik . v_j      w_ij = softmax_k(attention_scale a_ij)      s_ij = scale sum_k w_ijk
                                                                            a_ijk

    Rows are clips `Tokens`, columns are vectors [n, D].

    Attributes:
      scale: inverse temperature of the contrast.
      attention_scale: inverse temperature of the weights; 0 is the mean of the clips.
    """

    scale: Any = 1.0
    attention_scale: Any = 1.0

    def __call__(self, u: Tokens, v: jax.Array) -> jax.Array:
        fit = _products("ikd,jd->ijk", u.tokens, v)
        logits = self.attention_scale * fit
        if u.mask is None:
            return self.scale * jnp.sum(jax.nn.softmax(logits) * fit, -1)
        mask = u.mask[:, None]
        weights = jax.nn.softmax(jnp.where(mask, logits, tiles.lowest(logits.dtype)))
        return self.scale * jnp.sum(jnp.where(mask, weights * fit, 0.0), -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaxOverQueries:
    """`scale max_k u_ik . v_j`: the query of a row that fits the column best (BLIP-2, Li et al.
    2023, arXiv 2301.12597, section 3.1; CoAVT). Rows are queries `Tokens`, columns vectors [n,
    D]."""

    scale: Any = 1.0

    def __call__(self, u: Tokens, v: jax.Array) -> jax.Array:
        fit = _products("ikd,jd->ijk", u.tokens, v)
        if u.mask is None:
            return self.scale * jnp.max(fit, -1)
        best = jnp.max(jnp.where(u.mask[:, None], fit, tiles.lowest(fit.dtype)), -1)
        return self.scale * jnp.where(u.mask.any(-1)[:, None], best, 0.0)


def _products(how: str, u: jax.Array, v: jax.Array) -> jax.Array:
    """An einsum accumulated in float32 (float64), float32 operands in full precision."""
    dtype = jnp.promote_types(u.dtype, v.dtype)
    precision = lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    return jnp.einsum(
        how, u, v, precision=precision, preferred_element_type=tiles.accumulator(dtype)
    )
