"""Pallas kernels for the GPU (Triton lowering), for rows of any width.

    forward    one program per tile: logits over chunks of the width, then the tile's row and column
               statistics, which are joined outside; rows are taken in segments, so that these
               partial results stay small
    backward   per segment of rows, one program per tile writes the gradient of the logits,
               positives folded in, in the operands' dtype; the two products with it are left to
               XLA, that is to cuBLAS

Four products of 2 M N D FLOP in all (forward 1, backward 3): the accumulators of dx and dy, which
do not fit the registers of a program, never have to. In HBM a pair costs 2 bytes written and 4 read
for bfloat16, a segment at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from jaxvl.chips import MIB, UNKNOWN_GPU, Chip
from jaxvl.kernels.contrastive import sizes, tiles
from jaxvl.kernels.contrastive.packing import struct
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats, matmul


@dataclasses.dataclass(frozen=True)
class Tile:
    """One program's tile of logits.

    Attributes:
      rows, cols: powers of two, at least 16 (Triton's matrix units).
      chunk: part of the width per step, a power of two, at least 16.
      warps, stages: of the program; stages of its software pipeline.
    """

    rows: int = 128
    cols: int = 128
    chunk: int = 64
    warps: int = 8
    stages: int = 3

    def __post_init__(self):
        for field in ("rows", "cols", "chunk"):
            size = getattr(self, field)
            if not (isinstance(size, int) and size >= 16 and size & (size - 1) == 0):
                raise ValueError(f"{field}: {size!r} is not valid; must be a power of two >= 16")
        if self.warps not in (1, 2, 4, 8, 16):
            raise ValueError(f"warps: {self.warps!r} is not valid; must be 1, 2, 4, 8 or 16")
        if not (isinstance(self.stages, int) and 1 <= self.stages <= 8):
            raise ValueError(f"stages: {self.stages!r} is not valid; must be in [1, 8]")


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Bytes of shared memory of one program."""
    operands = (
        tile.stages * (tile.rows + tile.cols) * tile.chunk * itemsize
    )  # `stages` chunks of x and of y in flight
    reductions = (
        4 * tile.warps * (tile.rows + tile.cols)
    )  # partial sums of the warps, after the product: the same bytes
    return max(operands, reductions)


@dataclasses.dataclass(frozen=True)
class PallasGpu:
    """Block operations of the GPU kernels.

    Attributes:
      tile: of both passes.
      shared: bytes of shared memory per program (99 KiB: every generation since sm_80; Hopper has
        227).
      segment: bytes that the partial statistics or the pair gradients of one segment of rows may
        take.
      interpret: run on any backend, slowly, for tests.
    """

    tile: Tile = Tile()
    shared: int = UNKNOWN_GPU.vmem
    segment: int = 64 * MIB
    interpret: Any = False
    name: ClassVar[str] = "pallas_gpu"

    @property
    def interpreted(self) -> bool:
        return bool(self.interpret)

    def __post_init__(self):
        if not (isinstance(self.segment, int) and self.segment >= 1):
            raise ValueError(
                f"segment: {self.segment!r} is not valid; must be a number of bytes >= 1"
            )

    @classmethod
    def fitting(
        cls, dtype: DTypeLike, chip: Chip = UNKNOWN_GPU, width: int = 0, device_kind: str = ""
    ) -> PallasGpu:
        """Measured tiles of `device_kind`, else ones for `dtype` that every GPU since sm_80 can
        have: float32 products run on the plain units, in smaller chunks.

        One tile serves both passes: a measured one of the backward pass.
        """
        if found := sizes.measured(device_kind, cls.name, "backward", dtype, width):
            return cls(Tile(**found), shared=chip.vmem)
        if jnp.dtype(dtype).itemsize != 2:
            return cls(Tile(64, 64, 32, warps=4, stages=2), shared=chip.vmem)
        return cls(Tile(), shared=chip.vmem)

    def check(self, shape, dtype, kind, form: Form) -> None:
        """Raises ValueError if these kernels cannot run."""
        del kind, shape
        dtype = jnp.dtype(dtype)
        if dtype not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
            raise ValueError(
                f"dtype {dtype}; it takes float32 and bfloat16 ('reference' and 'chunked' "
                f"take float64)"
            )
        if form.dense:
            raise ValueError("PairMask(keep=…) is a dense mask; 'reference' and 'chunked' take it")
        if (need := shared_bytes(self.tile, dtype.itemsize)) > self.shared:
            raise ValueError(
                f"{self.tile} needs {need} bytes of shared memory; there are {self.shared}"
            )

    # ----------------------------------------------------------------------------------------------

    def softmax_forward(
        self, x, y, scale, rows: Side, cols: Side, form: Form
    ) -> tuple[Stats, Stats]:
        """As `Chunked.softmax_forward`."""
        return self._forward(x, y, scale, jnp.zeros_like(scale), rows, cols, form, "softmax")

    def sigmoid_forward(self, x, y, scale, bias, rows: Side, cols: Side, form: Form) -> jax.Array:
        """As `Chunked.sigmoid_forward`."""
        return self._forward(x, y, scale, bias, rows, cols, form, "sigmoid")[0]["loss"]

    def softmax_backward(self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype):
        """As `Chunked.softmax_backward`."""
        (dx, dscale, _), dy = self._backward(
            x, y, scale, jnp.zeros_like(scale), rows, cols, form, out, "softmax"
        )
        return (dx, dscale), dy

    def sigmoid_backward(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype
    ):
        """As `Chunked.sigmoid_backward`."""
        return self._backward(x, y, scale, bias, rows, cols, form, out, "sigmoid")

    # ----------------------------------------------------------------------------------------------

    def _forward(self, x, y, scale, bias, rows, cols, form, kind):
        m = x.shape[0]
        n = y.shape[0]
        stats = (
            tuple(tiles.empty_stats(1, form, jnp.zeros(1, jnp.float32)))
            if kind == "softmax"
            else ("loss",)
        )
        # Column statistics of every row block of a segment lie side by side until they are joined.
        per_row = 4 * len(stats) * n / self.tile.rows
        x, y, rows, cols, form, parts = self._padded(x, y, rows, cols, form, per_row)

        def segment(col_state, part):
            x_i, rows_i = part
            row, col = self._call(
                _forward_kernel, x_i, y, scale, bias, rows_i, cols, form, kind, stats
            )
            col = _join(col, scale, kind)
            return _join({k: jnp.stack([col_state[k], col[k]]) for k in stats}, scale, kind), _join(
                row, scale, kind
            )

        start = (
            tiles.empty_stats(y.shape[0], form, x)
            if kind == "softmax"
            else {"loss": tiles.full(y.shape[0], 0.0, x)}
        )
        col, row = lax.scan(segment, start, (_cut(x, parts), _cut(rows, parts)))
        return {k: row[k].reshape(-1)[:m] for k in stats}, {k: col[k][:n] for k in stats}

    def _backward(self, x, y, scale, bias, rows, cols, form, out, kind):
        m = x.shape[0]
        n = y.shape[0]
        width = x.shape[1]
        x, y, rows, cols, form, parts = self._padded(x, y, rows, cols, form, n * x.dtype.itemsize)

        def segment(dy, part):
            x_i, rows_i = part
            grad, sums = self._call(
                _backward_kernel, x_i, y, scale, bias, rows_i, cols, form, kind, ()
            )
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

    def _padded(self, x, y, rows: Side, cols: Side, form: Form, bytes_per_row: float):
        """Operands padded to whole tiles and segments, their vectors, and the number of
        segments."""
        m = x.shape[0]
        n = y.shape[0]
        bm = self.tile.rows
        bn = self.tile.cols
        blocks = -(-m // bm)
        parts = min(blocks, -(-int(blocks * bm * bytes_per_row) // self.segment))
        pm = -(-blocks // parts) * parts * bm - m
        pn = -n % bn
        pd = -x.shape[1] % self.tile.chunk
        if pm or pn:
            rows = rows if "ok" in rows else dict(rows, ok=jnp.ones(m, jnp.float32))
            cols = cols if "ok" in cols else dict(cols, ok=jnp.ones(n, jnp.float32))
            form = dataclasses.replace(form, valid=True)

        def vectors(side, extra):
            side = {k: jnp.pad(v, ((0, extra), *((0, 0),) * (v.ndim - 1))) for k, v in side.items()}
            if "teacher" in side:
                side["teacher"] = jnp.pad(
                    side["teacher"], ((0, 0), (0, -side["teacher"].shape[1] % self.tile.chunk))
                )
            return side

        x = jnp.pad(x, ((0, pm), (0, pd)))
        y = jnp.pad(y, ((0, pn), (0, pd)))
        return x, y, vectors(rows, pm), vectors(cols, pn), form, parts

    def _call(
        self, kernel, x, y, scale, bias, rows: Side, cols: Side, form: Form, kind: str, stats
    ):
        m, width = x.shape
        n = y.shape[0]
        bm = self.tile.rows
        bn = self.tile.cols
        ni = m // bm
        nj = n // bn
        by_row = pl.BlockSpec((1, bm), lambda i, j: (j, i))
        by_col = pl.BlockSpec((1, bn), lambda i, j: (i, j))
        if kernel is _forward_kernel:
            # Partial results of a tile: [column block, M] for its rows, [row block, N] for its
            # columns.
            shapes = (
                {k: struct((nj, m), jnp.float32, x) for k in stats},
                {k: struct((ni, n), jnp.float32, x) for k in stats},
            )
            out_specs = ({k: by_row for k in stats}, {k: by_col for k in stats})
            nbytes = 4 * len(stats) * (nj * m + ni * n)
        else:
            shapes = (struct((m, n), x.dtype, x), struct((nj, m), jnp.float32, x))
            out_specs = (pl.BlockSpec((bm, bn), lambda i, j: (i, j)), by_row)
            nbytes = m * n * x.dtype.itemsize
        specs = (
            pl.BlockSpec((1, 2), lambda i, j: (0, 0)),
            pl.BlockSpec((bm, width), lambda i, j: (i, 0)),
            pl.BlockSpec((bn, width), lambda i, j: (j, 0)),
            {
                k: pl.BlockSpec((bm, *v.shape[1:]), lambda i, j, v=v: (i, *(0,) * (v.ndim - 1)))
                for k, v in rows.items()
            },
            {
                k: pl.BlockSpec((bn, *v.shape[1:]), lambda i, j, v=v: (j, *(0,) * (v.ndim - 1)))
                for k, v in cols.items()
            },
        )
        return pl.pallas_call(
            functools.partial(kernel, form=form, kind=kind, chunk=self.tile.chunk),
            grid=(ni, nj),
            in_specs=specs,
            out_specs=out_specs,
            out_shape=shapes,
            compiler_params=triton.CompilerParams(
                num_warps=self.tile.warps, num_stages=self.tile.stages
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * m * n * width,
                transcendentals=2 * m * n,
                bytes_accessed=(nj * x.size + ni * y.size) * x.dtype.itemsize + nbytes,
            ),
            interpret=self.interpret,
            name=f"contrastive_{kind}_{'forward' if kernel is _forward_kernel else 'gradient'}",
        )(jnp.stack([scale, bias]).astype(jnp.float32).reshape(1, 2), x, y, rows, cols)


# --------------------------------------------------------------------------------------------------
# Kernels


def _tile(scalars, x, y, rows, cols, form: Form, chunk: int):
    """Scale, bias, cosines `[m, n]` and the tile's vectors."""

    def product(a, b):
        def step(k, total):
            part = pl.ds(k * chunk, chunk)
            return total + matmul(a[:, part], b[:, part], (1, 1))

        return lax.fori_loop(
            0, a.shape[1] // chunk, step, jnp.zeros((a.shape[0], b.shape[0]), jnp.float32)
        )

    row = {k: v[...][:, None] for k, v in rows.items() if k != "teacher"}
    col = {k: v[...][None, :] for k, v in cols.items() if k != "teacher"}
    if form.soft:
        row["z"] = product(rows["teacher"], cols["teacher"])
    return scalars[0, 0], scalars[0, 1], product(x, y), row, col


def _forward_kernel(
    scalars, x, y, rows, cols, row_out, col_out, *, form: Form, kind: str, chunk: int
):
    scale, bias, c, rows, cols = _tile(scalars, x, y, rows, cols, form, chunk)
    if kind == "softmax":
        row, col = tiles.softmax_stats(c, scale, rows, cols, form)
        for k, ref in row_out.items():
            ref[0, :] = row[k].reshape(-1)
            col_out[k][0, :] = col[k].reshape(-1)
    else:
        loss = tiles.sigmoid_loss(scale * c + bias, rows, cols, form)
        of_rows = jnp.sum(loss, 1)
        of_cols = jnp.sum(loss, 0)
        row_out["loss"][0, :] = of_rows
        col_out["loss"][0, :] = of_cols


def _backward_kernel(
    scalars, x, y, rows, cols, grad_out, sums_out, *, form: Form, kind: str, chunk: int
):
    scale, bias, c, rows, cols = _tile(scalars, x, y, rows, cols, form, chunk)
    if kind == "softmax":
        grad = tiles.softmax_gradient(c, scale, rows, cols, form)
    else:
        grad = tiles.sigmoid_gradient(scale * c + bias, rows, cols, form)
    grad_out[...] = grad.astype(grad_out.dtype)
    sums_out[0, :] = jnp.sum(grad, 1)


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
