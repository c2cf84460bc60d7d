"""What the GPU kernels share: rows in segments, whose partial results are joined here.

    forward    one program per tile: the tile's row and column statistics, which are joined outside;
               rows are taken in segments, so that these partial results stay small
    backward   per segment of rows, one program per tile writes the gradient of the logits,
               positives folded in, in the operands' dtype; the two products with it are left to
               XLA, that is to cuBLAS

Four products of 2 M N D FLOP in all (forward 1, backward 3): the accumulators of dx and dy, which
do not fit the registers of a program, never have to. In HBM a pair costs 2 bytes written and 4 read
for bfloat16, a segment at a time. The kernels add nothing up by atomics: they give the same bits
every time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.kernels.contrastive import tiles
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats, matmul


class Tile(Protocol):
    """One program's tile of logits.

    Attributes:
      rows, cols: of the tile.
      chunk: part of the width per step.
      unit: rows of programs that run together.
    """

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def chunk(self) -> int: ...

    @property
    def unit(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What a kernel computes of every tile.

    Attributes:
      kind: "softmax" or "sigmoid".
      form: of the targets.
      stats: names of the statistics; none: the gradients of the logits.
    """

    kind: str
    form: Form
    stats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the kernel, as profilers show it."""
        return f"contrastive_{self.kind}_{'forward' if self.stats else 'gradient'}"


class Segmented:
    """Block operations by kernels of tiles.

    A subclass is a dataclass. It has a tile for each pass and the two kernels.

    Attributes:
      segment: bytes that the partial statistics or the pair gradients of one segment of rows may
        take.
      interpret: whether, or how, an interpreter runs the kernels.
    """

    segment: int
    interpret: Any

    def __post_init__(self):
        if not (isinstance(self.segment, int) and self.segment >= 1):
            raise ValueError(
                f"segment: {self.segment!r} is not valid; must be a number of bytes >= 1"
            )

    @property
    def interpreted(self) -> bool:
        return bool(self.interpret)

    def tile_of(self, which: str) -> Tile:
        """The tile of the "forward" or "backward" pass."""
        raise NotImplementedError(f"{type(self).__name__} must give its tiles")

    def columns(self, y: jax.Array) -> jax.Array:
        """`y` `[N, D]` as the kernels read it."""
        return y

    def statistics(self, x, y, scalars, rows: Side, cols: Side, task: Task) -> tuple[Stats, Stats]:
        """`task.stats` of every tile: of its rows `[N / tile.cols, M]`, of its columns `[M /
        tile.rows, N]`. `scalars`: scale and bias, Float32[2]; all lengths are whole tiles."""
        raise NotImplementedError(f"{type(self).__name__} must give its kernel of the forward pass")

    def gradients(
        self, x, y, scalars, rows: Side, cols: Side, task: Task
    ) -> tuple[jax.Array, jax.Array]:
        """Gradients of the logits `[M, N]` in the dtype of `x`, and their sums over the columns of
        each tile `[N / tile.cols, M]`."""
        raise NotImplementedError(f"{type(self).__name__} must give its kernel of the gradients")

    def check_form(self, form: Form) -> None:
        """Raises ValueError for targets that no kernel of tiles takes."""
        if form.dense:
            raise ValueError("PairMask(keep=…) is a dense mask; 'reference' and 'chunked' take it")

    # ----------------------------------------------------------------------------------------------

    def softmax_forward(
        self, x, y, scale, rows: Side, cols: Side, form: Form
    ) -> tuple[Stats, Stats]:
        """As `Chunked.softmax_forward`."""
        stats = tuple(tiles.empty_stats(1, form, jnp.zeros(1, jnp.float32)))
        task = Task("softmax", form, stats)
        return self._forward(x, y, scale, jnp.zeros_like(scale), rows, cols, task)

    def sigmoid_forward(self, x, y, scale, bias, rows: Side, cols: Side, form: Form) -> jax.Array:
        """As `Chunked.sigmoid_forward`."""
        task = Task("sigmoid", form, ("loss",))
        return self._forward(x, y, scale, bias, rows, cols, task)[0]["loss"]

    def softmax_backward(self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype):
        """As `Chunked.softmax_backward`."""
        bias = jnp.zeros_like(scale)
        task = Task("softmax", form)
        (dx, dscale, _), dy = self._backward(x, y, scale, bias, rows, cols, task, out)
        return (dx, dscale), dy

    def sigmoid_backward(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype
    ):
        """As `Chunked.sigmoid_backward`."""
        return self._backward(x, y, scale, bias, rows, cols, Task("sigmoid", form), out)

    # ----------------------------------------------------------------------------------------------

    def _forward(self, x, y, scale, bias, rows, cols, task: Task):
        m = x.shape[0]
        n = y.shape[0]
        tile = self.tile_of("forward")
        # Column statistics of every row block of a segment lie side by side until they are joined.
        per_row = 4 * len(task.stats) * n / tile.rows
        x, y, rows, cols, task, parts = padded(tile, self.segment, x, y, rows, cols, task, per_row)
        scalars = _scalars(scale, bias)
        columns = self.columns(y)

        def segment(col_state, part):
            x_i, rows_i = part
            row, col = self.statistics(x_i, columns, scalars, rows_i, cols, task)
            col = _join(col, scale, task.kind)
            both = {k: jnp.stack([col_state[k], col[k]]) for k in task.stats}
            return _join(both, scale, task.kind), _join(row, scale, task.kind)

        if task.kind == "softmax":
            start = tiles.empty_stats(y.shape[0], task.form, x)
        else:
            start = {"loss": tiles.full(y.shape[0], 0.0, x)}
        col, row = lax.scan(segment, start, (_cut(x, parts), _cut(rows, parts)))
        row = {k: row[k].reshape(-1)[:m] for k in task.stats}
        return row, {k: col[k][:n] for k in task.stats}

    def _backward(self, x, y, scale, bias, rows, cols, task: Task, out: jnp.dtype):
        m = x.shape[0]
        n = y.shape[0]
        width = x.shape[1]
        tile = self.tile_of("backward")
        per_row = n * x.dtype.itemsize
        x, y, rows, cols, task, parts = padded(tile, self.segment, x, y, rows, cols, task, per_row)
        scalars = _scalars(scale, bias)
        columns = self.columns(y)

        def segment(dy, part):
            x_i, rows_i = part
            grad, sums = self.gradients(x_i, columns, scalars, rows_i, cols, task)
            ax = matmul(grad, y, (1, 0))
            dscale = jnp.sum(x_i.astype(jnp.float32) * ax, 1)
            return dy + matmul(grad, x_i, (0, 0)), ((scale * ax).astype(out), dscale, sums.sum(0))

        dy, (dx, dscale, dbias) = lax.scan(
            segment, tiles.full(y.shape, 0.0, x), (_cut(x, parts), _cut(rows, parts))
        )
        dx = dx.reshape(-1, dx.shape[-1])[:m, :width]
        return (dx, dscale.reshape(-1)[:m], dbias.reshape(-1)[:m]), (scale * dy)[:n, :width].astype(
            out
        )


def padded(
    tile: Tile, segment: int, x, y, rows: Side, cols: Side, task: Task, bytes_per_row: float
):
    """Operands padded to whole tiles and segments, their vectors, the task with the form of these,
    and the number of segments."""
    m = x.shape[0]
    n = y.shape[0]
    blocks = -(-m // tile.unit)
    parts = min(blocks, -(-int(blocks * tile.unit * bytes_per_row) // segment))
    pm = -(-blocks // parts) * parts * tile.unit - m
    pn = -n % tile.cols
    pd = -x.shape[1] % tile.chunk
    if pm or pn:
        rows = rows if "ok" in rows else dict(rows, ok=jnp.ones(m, jnp.float32))
        cols = cols if "ok" in cols else dict(cols, ok=jnp.ones(n, jnp.float32))
        task = dataclasses.replace(task, form=dataclasses.replace(task.form, valid=True))

    def vectors(side, extra):
        side = {k: jnp.pad(v, ((0, extra), *((0, 0),) * (v.ndim - 1))) for k, v in side.items()}
        if "teacher" in side:
            side["teacher"] = jnp.pad(
                side["teacher"], ((0, 0), (0, -side["teacher"].shape[1] % tile.chunk))
            )
        return side

    x = jnp.pad(x, ((0, pm), (0, pd)))
    y = jnp.pad(y, ((0, pn), (0, pd)))
    return x, y, vectors(rows, pm), vectors(cols, pn), task, parts


def _scalars(scale: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.stack([scale, bias]).astype(jnp.float32)


def _join(parts: Stats, scale: jax.Array, kind: str) -> Stats:
    """Statistics `[blocks, n]` of disjoint blocks as those of their union `[n]`."""
    if kind == "sigmoid":
        return {"loss": parts["loss"].sum(0)}
    top = parts["m"].max(0)
    out = {k: v.sum(0) for k, v in parts.items()}
    out |= dict(m=top, s=jnp.sum(parts["s"] * jnp.exp(scale * (parts["m"] - top)), 0))
    if "tm" in parts:
        top = parts["tm"].max(0)
        share = jnp.exp(parts["tm"] - top)
        out |= dict(tm=top, ts=jnp.sum(parts["ts"] * share, 0), tp=jnp.sum(parts["tp"] * share, 0))
    return out


def _cut(tree: Any, parts: int) -> Any:
    return jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), tree)
