"""Tiles in plain XLA, for any backend: a scan over row blocks, inside it one over column blocks.

Memory beyond the inputs and gradients is one tile and the statistics. Sizes that the tile does not
divide are padded with rows and columns that are not `ok`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.kernels.contrastive import tiles
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats, matmul


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Block operations in plain XLA.

    Attributes:
      rows, cols: largest tile. A block that fits in one tile is computed without a loop.
    """

    rows: int = 1024
    cols: int = 1024

    name: ClassVar[str] = "chunked"
    interpreted: ClassVar[bool] = False

    def __post_init__(self):
        for field in ("rows", "cols"):
            if not (isinstance(getattr(self, field), int) and getattr(self, field) >= 1):
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} is not valid; must be a number of rows >= 1"
                )

    def check(self, shape, dtype, kind, form: Form) -> None:
        """Every case runs."""

    def softmax_forward(
        self, x, y, scale, rows: Side, cols: Side, form: Form
    ) -> tuple[Stats, Stats]:
        """Statistics of `x` `[M, D]` against `y` `[N, D]`: rows `[M]`, columns `[N]`."""

        def tile(x, y, rows, cols, form):
            row, col = tiles.softmax_stats(
                matmul(x, y, (1, 1)), scale, tiles.as_rows(rows), tiles.as_cols(cols), form
            )
            return {k: s[:, 0] for k, s in row.items()}, {k: s[0] for k, s in col.items()}

        def join(a, b):
            return tiles.merge_stats(a, b, scale)

        def empty(n):
            return tiles.empty_stats(n, form, x)

        return self._grid(tile, join, empty, empty, x, y, rows, cols, form)

    def softmax_backward(self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype):
        """`((dx, dscale), dy)`: gradients `[M, D]`, `[N, D]` in dtype `out`, and each row's part of
        that of the scale, `[M]`.

        See `tiles.softmax_gradient` for `rows`, `cols`.
        """

        def tile(x, y, rows, cols, form):
            rows = tiles.as_rows(rows)
            cols = tiles.as_cols(cols)
            grad = tiles.softmax_gradient(matmul(x, y, (1, 1)), scale, rows, cols, form).astype(
                x.dtype
            )
            return matmul(grad, y, (1, 0)), matmul(grad, x, (0, 0))

        def zeros(n):
            return tiles.full((n, x.shape[1]), 0.0, x)

        def finish(x, ax):
            return (scale * ax).astype(out), jnp.sum(x.astype(ax.dtype) * ax, 1)

        row, ay = self._grid(tile, tiles.add, zeros, zeros, x, y, rows, cols, form, finish)
        return row, (scale * ay).astype(out)

    def sigmoid_forward(self, x, y, scale, bias, rows: Side, cols: Side, form: Form) -> jax.Array:
        """Sum over the columns of each row's pair losses, `[M]`."""

        def tile(x, y, rows, cols, form):
            logits = scale * matmul(x, y, (1, 1)) + bias
            return tiles.sigmoid_loss(logits, tiles.as_rows(rows), tiles.as_cols(cols), form).sum(
                1
            ), ()

        return self._grid(
            tile, tiles.add, lambda m: tiles.full(m, 0.0, x), lambda n: (), x, y, rows, cols, form
        )[0]

    def sigmoid_backward(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype
    ):
        """`((dx, dscale, dbias), dy)`, as `softmax_backward`."""

        def tile(x, y, rows, cols, form):
            logits = scale * matmul(x, y, (1, 1)) + bias
            grad = tiles.sigmoid_gradient(logits, tiles.as_rows(rows), tiles.as_cols(cols), form)
            low = grad.astype(x.dtype)
            return (matmul(low, y, (1, 0)), grad.sum(1)), matmul(low, x, (0, 0))

        def zeros(n):
            return tiles.full((n, x.shape[1]), 0.0, x)

        def finish(x, state):
            ax, sums = state
            return (scale * ax).astype(out), jnp.sum(x.astype(ax.dtype) * ax, 1), sums

        row, ay = self._grid(
            tile,
            tiles.add,
            lambda m: (zeros(m), tiles.full(m, 0.0, x)),
            zeros,
            x,
            y,
            rows,
            cols,
            form,
            finish,
        )
        return row, (scale * ay).astype(out)

    def _grid(
        self, tile, join, row_init, col_init, x, y, rows, cols, form: Form, finish=None
    ) -> tuple[Any, Any]:
        """`tile(x, y, rows, cols, form) -> (row result, column result)` over the grid, joined along
        rows and columns.

        `finish(x, row result)` is applied to each row block once it is complete.
        """
        finish = finish or (lambda x, row: row)
        m = x.shape[0]
        n = y.shape[0]
        bm = even(m, self.rows)
        bn = even(n, self.cols)
        ni = -(-m // bm)
        nj = -(-n // bn)
        if ni == nj == 1:
            row, col = tile(x, y, rows, cols, form)
            return finish(x, row), col
        dense = rows["keep"] if form.dense else None
        rows = {k: v for k, v in rows.items() if k != "keep"}
        if (pad := (ni * bm - m, nj * bn - n)) != (0, 0):
            rows = _with_ok(rows, m)
            cols = _with_ok(cols, n)
            form = dataclasses.replace(form, valid=True)
        x, rows = _blocks((x, rows), ni, bm)
        y, cols = _blocks((y, cols), nj, bn)
        if dense is not None:
            dense = (
                jnp.pad(dense, ((0, pad[0]), (0, pad[1]))).reshape(ni, bm, nj, bn).swapaxes(1, 2)
            )
        col_start = jax.tree.map(lambda a: jnp.broadcast_to(a, (nj, *a.shape)), col_init(bn))

        def row_step(col_state, xs):
            x_i, rows_i, dense_i = xs

            def col_step(row_state, ys):
                y_j, cols_j, state_j, dense_ij = ys
                rows_ij = rows_i if dense_ij is None else dict(rows_i, keep=dense_ij)
                row, col = tile(x_i, y_j, rows_ij, cols_j, form)
                return join(row_state, row), join(state_j, col)

            row_state, col_state = lax.scan(col_step, row_init(bm), (y, cols, col_state, dense_i))
            return col_state, finish(x_i, row_state)

        col_state, row_state = lax.scan(row_step, col_start, (x, rows, dense))

        def flat(n):
            return lambda a: a.reshape(-1, *a.shape[2:])[:n]

        return jax.tree.map(flat(m), row_state), jax.tree.map(flat(n), col_state)


def even(n: int, largest: int) -> int:
    """A tile of at most `largest` that cuts `n` into equal parts with the least padding, in
    multiples of 8."""
    parts = -(-n // largest)
    size = -(-n // parts)
    return size if parts == 1 else min(largest, -(-size // 8) * 8)


def _with_ok(side: Side, n: int) -> Side:
    return side if "ok" in side else dict(side, ok=jnp.ones(n, jnp.float32))


def _blocks(tree: Any, parts: int, size: int) -> Any:
    """Leaves `[n, …]` as `[parts, size, …]`, padded with zeros."""

    def cut(a):
        return jnp.pad(a, ((0, parts * size - a.shape[0]), *((0, 0),) * (a.ndim - 1))).reshape(
            parts, size, *a.shape[1:]
        )

    return jax.tree.map(cut, tree)
