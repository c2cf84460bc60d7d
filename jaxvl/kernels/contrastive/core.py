"""The streamed losses with their gradients: custom_vjp around block operations.

    Blocks (chunked, pallas_…)            statistics and gradients of one block of x against one of y
    Exchange (Local, Gather, Ring, Grid)  which blocks meet, on one device or over a mesh

What is saved for the backward pass are the inputs and a few vectors; all logits are computed again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive import packing, tiles
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats


class Blocks(Protocol):
    """Block operations of one implementation; `chunked.Chunked` documents shapes.

    Attributes:
      name: of the implementation.
      interpreted: whether an interpreter of kernels runs them, for tests.
    """

    name: str
    interpreted: bool

    def check(self, shape: tuple[int, int, int], dtype: DTypeLike, kind: str, form: Form) -> None:
        """Raises ValueError with the reason if this cannot run for (M, N, D) per device."""
        ...

    def softmax_forward(
        self, x, y, scale, rows: Side, cols: Side, form: Form
    ) -> tuple[Stats, Stats]: ...

    def sigmoid_forward(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form
    ) -> jax.Array: ...


class OnePass(Blocks, Protocol):
    """Blocks that compute the logits of a block once for both gradients."""

    def softmax_backward(
        self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype
    ) -> tuple[Tree, jax.Array]: ...

    def sigmoid_backward(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype
    ) -> tuple[Tree, jax.Array]: ...


@runtime_checkable
class TwoPasses(Blocks, Protocol):
    """Blocks whose gradients of x and of y are passes of their own, each with its logits.

    On a ring x then travels for dy, in its own dtype, where otherwise dy would in float32, away
    from home and back.
    """

    def softmax_gradient(
        self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype, swapped: bool
    ) -> tuple[jax.Array, jax.Array]:
        """dx and each row's part of that of the scale; with `swapped`, x are the columns."""
        ...

    def sigmoid_gradient(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype, swapped: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]: ...


class Exchange(Protocol):
    """Brings every row block together with every column block.

    `block(x, y, rows, cols) -> (row result, column result)`; results are joined by `join`, and
    every device ends with those of its own rows and columns.

    Attributes:
      partial: whether results are joined, and so must come in the accumulation dtype.
      at_once: whether `TwoPasses` blocks give both gradients of a block when it is met. Else their
        passes meet one after the other, with results of rows alone.
    """

    partial: bool
    at_once: bool

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]: ...

    def total(self, value: jax.Array) -> jax.Array:
        """Sum over the devices."""
        ...


@dataclasses.dataclass(frozen=True)
class Local:
    """All rows and columns are here."""

    partial: ClassVar[bool] = False
    at_once: ClassVar[bool] = True

    def pairs(self, block, join, x, y, rows, cols):
        del join
        return block(x, y, rows, cols)

    def total(self, value):
        return value


def _gradients(
    exchange: Exchange, gradient: Callable, x, y, rows: Side, cols: Side
) -> tuple[Tree, jax.Array]:
    """`(dx, sums of each row), dy` of blocks with two passes; `gradient(x, y, rows, cols,
    swapped)`."""

    def of_rows(x, y, rows, cols):
        return gradient(x, y, rows, cols, False), ()

    def of_cols(y, x, cols, rows):
        return gradient(y, x, cols, rows, True)[0], ()

    def of_both(x, y, rows, cols):
        return gradient(x, y, rows, cols, False), gradient(y, x, cols, rows, True)[0]

    if exchange.at_once:
        return exchange.pairs(of_both, tiles.add, x, y, rows, cols)
    row, _ = exchange.pairs(of_rows, tiles.add, x, y, rows, cols)
    dy, _ = exchange.pairs(of_cols, tiles.add, y, x, cols, rows)
    return row, dy


def _read(names: tuple[str, ...], *sides: Side) -> list[Side]:
    """What a pass reads of the sides; the rest does not have to travel."""
    out = []
    for side in sides:
        out.append({k: v for k, v in side.items() if k in names or packing.always_read(k)})
    return out


# --------------------------------------------------------------------------------------------------
# Softmax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def softmax_losses(
    blocks: Blocks, exchange: Exchange, form: Form, x, y, scale, rows: Side, cols: Side
):
    """Cross-entropies of the rows and of the columns.

    Args:
      x, y: Float[M D], Float[N D], this device's rows and columns.
      scale: Float[""].
      rows, cols: vectors of the lowered targets.

    Returns:
      Float[M], Float[N] in the accumulation dtype.
    """
    return _softmax_fwd(blocks, exchange, form, x, y, scale, rows, cols)[0]


def _softmax_fwd(blocks, exchange, form, x, y, scale, rows, cols):
    def block(x, y, rows, cols):
        return blocks.softmax_forward(x, y, scale, rows, cols, form)

    def join(a, b):
        return tiles.merge_stats(a, b, scale)

    row, col = exchange.pairs(block, join, x, y, *_read(packing.TARGET, rows, cols))
    if form.smoothing and not form.masked:
        row |= _uniform(exchange, x, y, cols)
        col |= _uniform(exchange, y, x, rows)
    losses = (
        _loss(row, rows, form, form.soft_weights[0], scale),
        _loss(col, cols, form, form.soft_weights[1], scale),
    )
    return losses, (x, y, scale, rows, cols, _saved(row), _saved(col))


def _uniform(exchange: Exchange, x: jax.Array, y: jax.Array, cols: Side) -> Stats:
    """`sum_j c_ij` = x_i . sum_j y_j over all columns, in closed form, and their number."""
    acc = tiles.accumulator(x.dtype)
    ok = cols.get("ok", jnp.ones(y.shape[0], acc)).astype(acc)
    total = exchange.total(ok @ y.astype(acc))
    count = exchange.total(jnp.sum(ok))
    return dict(
        uni=tiles.matmul(x.astype(acc), total[None], (1, 1))[:, 0],
        cnt=jnp.broadcast_to(count, x.shape[:1]),
    )


def _loss(stats: Stats, side: Side, form: Form, soft_weight: float, scale: jax.Array) -> jax.Array:
    """`sum_j target_ij (lse_i - scale c_ij)`, written so that equal cosines cancel exactly."""
    hit = side["norm"] * stats["pos"]
    if form.soft:
        hit += soft_weight * stats["tp"] / _nonzero(stats["ts"])
    gap = side["total"] * stats["m"] - hit
    if form.smoothing:
        gap += form.smoothing * (
            hit - side["total"] * stats["uni"] / jnp.maximum(stats["cnt"], 1.0)
        )
    return side["total"] * jnp.log(stats["s"]) + scale * gap


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1.0, x)


def _saved(stats: Stats) -> Stats:
    saved = dict(m=stats["m"], l=jnp.log(stats["s"]))
    return saved | {k: stats[k] for k in ("cnt", "tm", "ts") if k in stats}


def _cotangents(saved: Stats, side: Side, g: jax.Array, form: Form, soft_weight: float) -> Side:
    """`side` with what `tiles.softmax_gradient` needs."""
    out = dict(
        side,
        m=saved["m"],
        l=saved["l"],
        gz=g * side["total"],
        gw=g * side["norm"] * (1.0 - form.smoothing),
    )
    if form.smoothing:
        out["gu"] = g * side["total"] * form.smoothing / jnp.maximum(saved["cnt"], 1.0)
    if form.soft:
        out["tm"] = saved["tm"]
        out["gt"] = g * soft_weight * (1.0 - form.smoothing) / _nonzero(saved["ts"])
    return out


def _softmax_bwd(blocks, exchange, form, saved, g):
    x, y, scale, rows, cols, row, col = saved
    out = tiles.accumulator(x.dtype) if exchange.partial else x.dtype

    def gradient(x, y, rows, cols, swapped):
        return blocks.softmax_gradient(x, y, scale, rows, cols, form, out, swapped)

    def block(x, y, rows, cols):
        return blocks.softmax_backward(x, y, scale, rows, cols, form, out)

    rows = _cotangents(row, rows, g[0], form, form.soft_weights[0])
    cols = _cotangents(col, cols, g[1], form, form.soft_weights[1])
    rows, cols = _read(packing.SOFTMAX_GRADIENT, rows, cols)
    if isinstance(blocks, TwoPasses):
        (dx, dscale), dy = _gradients(exchange, gradient, x, y, rows, cols)
    else:
        (dx, dscale), dy = exchange.pairs(block, tiles.add, x, y, rows, cols)
    return dx.astype(x.dtype), dy.astype(y.dtype), jnp.sum(dscale).astype(scale.dtype), None, None


softmax_losses.defvjp(_softmax_fwd, _softmax_bwd)


# --------------------------------------------------------------------------------------------------
# Sigmoid


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sigmoid_losses(
    blocks: Blocks, exchange: Exchange, form: Form, x, y, scale, bias, rows: Side, cols: Side
):
    """Binary cross-entropies of each row's pairs, summed over all columns: Float[M]. Arguments as
    in `softmax_losses`."""
    return _sigmoid_fwd(blocks, exchange, form, x, y, scale, bias, rows, cols)[0]


def _sigmoid_fwd(blocks, exchange, form, x, y, scale, bias, rows, cols):
    def block(x, y, rows, cols):
        return blocks.sigmoid_forward(x, y, scale, bias, rows, cols, form), ()

    loss, _ = exchange.pairs(block, tiles.add, x, y, *_read(packing.TARGET, rows, cols))
    return loss, (x, y, scale, bias, rows, cols)


def _sigmoid_bwd(blocks, exchange, form, saved, g):
    x, y, scale, bias, rows, cols = saved
    out = tiles.accumulator(x.dtype) if exchange.partial else x.dtype

    def gradient(x, y, rows, cols, swapped):
        return blocks.sigmoid_gradient(x, y, scale, bias, rows, cols, form, out, swapped)

    def block(x, y, rows, cols):
        return blocks.sigmoid_backward(x, y, scale, bias, rows, cols, form, out)

    rows, cols = _read(packing.SIGMOID_GRADIENT, dict(rows, g=g), cols)
    if isinstance(blocks, TwoPasses):
        (dx, dscale, dbias), dy = _gradients(exchange, gradient, x, y, rows, cols)
    else:
        (dx, dscale, dbias), dy = exchange.pairs(block, tiles.add, x, y, rows, cols)
    sums = jnp.sum(dscale).astype(scale.dtype), jnp.sum(dbias).astype(bias.dtype)
    return dx.astype(x.dtype), dy.astype(y.dtype), *sums, None, None


sigmoid_losses.defvjp(_sigmoid_fwd, _sigmoid_bwd)
