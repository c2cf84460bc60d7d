"""Pallas kernels for GPUs (Triton lowering), for rows of any width: a program for each tile.

What is done with the tiles is in `segments`. Hopper has kernels of its own: `pallas_hopper`.
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
from jaxvl.kernels.contrastive.segments import Segmented, Task
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

    @property
    def unit(self) -> int:
        """Rows of programs that run together."""
        return self.rows

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
class PallasTriton(Segmented):
    """Block operations of the Triton kernels.

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
    name: ClassVar[str] = "pallas_triton"

    @classmethod
    def fitting(
        cls, dtype: DTypeLike, chip: Chip = UNKNOWN_GPU, width: int = 0, device_kind: str = ""
    ) -> PallasTriton:
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
        self.check_form(form)
        if (need := shared_bytes(self.tile, dtype.itemsize)) > self.shared:
            raise ValueError(
                f"{self.tile} needs {need} bytes of shared memory; there are {self.shared}"
            )

    def tile_of(self, which: str) -> Tile:
        """One for both passes."""
        del which
        return self.tile

    def statistics(self, x, y, scalars, rows: Side, cols: Side, task: Task) -> tuple[Stats, Stats]:
        """As `Segmented.statistics`."""
        return self._call(_forward_kernel, x, y, scalars, rows, cols, task)

    def gradients(
        self, x, y, scalars, rows: Side, cols: Side, task: Task
    ) -> tuple[jax.Array, jax.Array]:
        """As `Segmented.gradients`."""
        return self._call(_gradient_kernel, x, y, scalars, rows, cols, task)

    def _call(self, kernel, x, y, scalars, rows: Side, cols: Side, task: Task):
        m, width = x.shape
        n = y.shape[0]
        bm = self.tile.rows
        bn = self.tile.cols
        ni = m // bm
        nj = n // bn
        by_row = pl.BlockSpec((1, bm), lambda i, j: (j, i))
        by_col = pl.BlockSpec((1, bn), lambda i, j: (i, j))
        stats = task.stats
        if stats:
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
            functools.partial(kernel, form=task.form, kind=task.kind, chunk=self.tile.chunk),
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
            name=task.name,
        )(scalars.reshape(1, 2), x, y, rows, cols)


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


def _gradient_kernel(
    scalars, x, y, rows, cols, grad_out, sums_out, *, form: Form, kind: str, chunk: int
):
    scale, bias, c, rows, cols = _tile(scalars, x, y, rows, cols, form, chunk)
    if kind == "softmax":
        grad = tiles.softmax_gradient(c, scale, rows, cols, form)
    else:
        grad = tiles.sigmoid_gradient(scale * c + bias, rows, cols, form)
    grad_out[...] = grad.astype(grad_out.dtype)
    sums_out[0, :] = jnp.sum(grad, 1)
