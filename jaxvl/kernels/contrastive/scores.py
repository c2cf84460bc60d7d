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
      chunk: clips whose products [m, n, chunk] are held at a time, for long recordings: the softmax
        then runs along with the sum. None: all.
    """

    scale: Any = 1.0
    attention_scale: Any = 1.0
    chunk: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    def __call__(self, u: Tokens, v: jax.Array) -> jax.Array:
        if self.chunk is not None and self.chunk < u.tokens.shape[1]:
            return self._chunked(u, v)
        fit = _products("ikd,jd->ijk", u.tokens, v)
        logits = self.attention_scale * fit
        if u.mask is None:
            return self.scale * jnp.sum(jax.nn.softmax(logits) * fit, -1)
        mask = u.mask[:, None]
        weights = jax.nn.softmax(jnp.where(mask, logits, tiles.lowest(logits.dtype)))
        return self.scale * jnp.sum(jnp.where(mask, weights * fit, 0.0), -1)

    def _chunked(self, u: Tokens, v: jax.Array) -> jax.Array:
        """The same, a chunk of clips at a time; a chunk's products are made again for the
        gradient."""
        m, k, d = u.tokens.shape
        mask = jnp.ones((m, k), bool) if u.mask is None else u.mask
        count = -(-k // self.chunk)
        more = count * self.chunk - k
        tokens = jnp.pad(u.tokens, ((0, 0), (0, more), (0, 0))).reshape(m, count, self.chunk, d)
        mask = jnp.pad(mask, ((0, 0), (0, more))).reshape(m, count, self.chunk)

        @jax.checkpoint
        def add(sums, part):
            clips, kept = part
            top, weight, weighted = sums
            fit = _products("ikd,jd->ijk", clips, v)
            logits = jnp.where(kept[:, None], self.attention_scale * fit, tiles.lowest(fit.dtype))
            new = jnp.maximum(top, lax.stop_gradient(logits.max(-1)))
            shares = jnp.where(kept[:, None], jnp.exp(logits - new[..., None]), 0.0)
            shrink = jnp.exp(top - new)
            weight = shrink * weight + shares.sum(-1)
            return (new, weight, shrink * weighted + (shares * fit).sum(-1)), None

        # Varies over the same mesh axes as the products.
        nothing = lax.stop_gradient(0.0 * _products("id,jd->ij", tokens[:, 0, 0], v))
        start = nothing + tiles.lowest(nothing.dtype), nothing, nothing
        by_chunk = tokens.swapaxes(0, 1), mask.swapaxes(0, 1)
        _, weight, weighted = lax.scan(add, start, by_chunk)[0]
        heard = weight > 0
        return self.scale * jnp.where(heard, weighted / jnp.where(heard, weight, 1.0), 0.0)


class Told(NamedTuple):
    """A side that is read token by token.

    Attributes:
      vector: Float[m D], of the whole.
      keys, values: Float[m T D], of its tokens.
      mask: Bool[m T], or None where all count.
    """

    vector: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: jax.Array | None = None


class Asking(NamedTuple):
    """A side whose tokens read those of `Told`.

    Attributes:
      vector: Float[n D], of the whole.
      wanted: Float[n D], what is to be found in the other side's tokens.
      queries: Float[n S D], of its tokens.
      mask: Bool[n S], or None where all count.
    """

    vector: jax.Array
    wanted: jax.Array
    queries: jax.Array
    mask: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GlobalAndLocal:
    """A whole with a whole, and a whole with what its tokens find in the other side (M3EL, Hu et
    al. 2024, arXiv 2412.10440; the release).

        p_ijst = softmax_t(q_js . k_it / sqrt(D))       c_ij = mean_s sum_t p_ijst v_it
        s_ij   = scale / 2 (g_i . g_j + w_j . c_ij / |c_ij|)

    Rows are `Told`, columns `Asking`. The release has a layer norm of c where this has unit length.
    """

    scale: Any = 1.0

    def __call__(self, u: Told, v: Asking) -> jax.Array:
        wholes = tiles.matmul(u.vector, v.vector, (1, 1))
        logits = _products("itd,jsd->ijst", u.keys, v.queries) / u.keys.shape[-1] ** 0.5
        if u.mask is not None:
            logits = jnp.where(u.mask[:, None, None], logits, tiles.lowest(logits.dtype))
        shares = jax.nn.softmax(logits)
        if v.mask is None:
            shares = shares.mean(2)
        else:
            count = jnp.maximum(v.mask.sum(1), 1)
            shares = jnp.where(v.mask[None, :, :, None], shares, 0.0).sum(2) / count[:, None]
        found = _products("ijt,itd->ijd", shares, u.values)
        size = jnp.sqrt(jnp.maximum(jnp.square(found).sum(-1), 1e-12))
        parts = _products("ijd,jd->ij", found, v.wanted) / size
        return self.scale * 0.5 * (wholes + parts)


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
