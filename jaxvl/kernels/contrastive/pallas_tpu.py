"""Pallas kernels for the TPU (Mosaic): tiles of logits live in VMEM only.

    forward    grid (row blocks, column blocks), one pass: row statistics in scratch, column
               statistics in one resident block
    backward   two passes of one kernel, for dx over columns and for dy over rows; each computes the
               logits again

Five products of 2 M N D FLOP in all (forward 1, dx 2, dy 2), no HBM traffic but the operands'.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jaxvl.chips import MIB, UNKNOWN_TPU, Chip
from jaxvl.kernels.contrastive import packing, sizes, tiles
from jaxvl.kernels.contrastive.packing import Packed, lanes, pack, struct, sublanes
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats, matmul

LANES = 128
MAX_WIDTH = 2048
# Column statistics stay resident in VMEM for this many columns; more are taken in segments.
MAX_COLUMNS = 65536


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns of one tile of logits; multiples of 128, since vectors lie along lanes on
    either side."""

    rows: int = 512
    cols: int = 512

    def __post_init__(self):
        for field in ("rows", "cols"):
            size = getattr(self, field)
            if not (isinstance(size, int) and size >= LANES and size % LANES == 0):
                raise ValueError(
                    f"{field}: {size!r} is not valid; must be a positive multiple of {LANES}"
                )


def forward_vmem(tile: Tile, width: int, itemsize: int, columns: int) -> int:
    """Bytes of VMEM of the forward kernel. `columns`: those whose statistics are resident."""
    m = tile.rows
    n = tile.cols
    blocks = 2 * (m + n) * width * itemsize  # x, y; double buffered
    logits = 5 * 4 * m * n  # cosines, shifted cosines, exponentials, the target's tile, one mask
    vectors = (
        2 * 4 * 2 * packing.SUBLANES * (m + n) * 2 + 4 * 3 * LANES * m
    )  # packed vectors; transposed ones, statistics
    return blocks + logits + vectors + 2 * 4 * packing.SUBLANES * columns


def backward_vmem(tile: Tile, width: int, itemsize: int, out_itemsize: int) -> int:
    """Bytes of VMEM of the backward kernel."""
    m = tile.rows
    n = tile.cols
    blocks = 2 * (m + n) * width * itemsize  # x, y; double buffered
    result = (
        m * width * (2 * out_itemsize + 4 + 4)
    )  # dx, double buffered; float32 accumulator and one product
    logits = 5 * 4 * m * n + m * n * itemsize  # as forward; the gradient as an operand
    vectors = 2 * 4 * 3 * packing.SUBLANES * (m + n) + 4 * 3 * LANES * m
    return blocks + result + logits + vectors


@dataclasses.dataclass(frozen=True)
class PallasTpu:
    """Block operations of the TPU kernels.

    Attributes:
      forward, backward: tiles, the latter of both passes: rows of what the gradient is of. Both
        sizes are upper bounds for blocks with fewer rows.
      vmem: limit in bytes handed to the compiler.
      interpret: False: compile for the TPU; True or `pltpu.InterpretParams()`: run on any backend,
        slowly, for tests.
    """

    forward: Tile = Tile()
    backward: Tile = Tile()
    vmem: int = UNKNOWN_TPU.vmem
    interpret: Any = False
    name: ClassVar[str] = "pallas_tpu"

    @property
    def interpreted(self) -> bool:
        return bool(self.interpret)

    @classmethod
    def fitting(
        cls, shape: tuple[int, int, int], dtype: DTypeLike, chip: Chip, device_kind: str = ""
    ) -> PallasTpu:
        """The fastest tiles that fit the chip's VMEM for (M, N, D): measured ones of `device_kind`,
        else those of the cost model (`sizes`).

        Raises:
          ValueError: none fits.
        """
        item = jnp.dtype(dtype).itemsize
        width = _lanes(shape[2])
        columns = min(_lanes(shape[1]), MAX_COLUMNS)

        def forward(rows, cols):
            return forward_vmem(Tile(rows, cols), width, item, columns)

        def backward(rows, cols):
            return backward_vmem(Tile(rows, cols), width, item, 4)

        tiles = {}
        for which, needs, products in (("forward", forward, 1), ("backward", backward, 2)):
            if found := sizes.measured(device_kind, cls.name, which, dtype, shape[2]):
                tiles[which] = Tile(**found)
                continue
            best = sizes.fastest(chip, shape, item, products, needs)
            if best is None:
                raise ValueError(
                    f"width {shape[2]} in {jnp.dtype(dtype)} does not fit {chip.vmem / MIB:.0f} "
                    f"MiB of VMEM in any tile"
                )
            tiles[which] = Tile(*best)
        return cls(**tiles, vmem=chip.vmem)

    def check(self, shape, dtype, kind, form: Form) -> None:
        """Raises ValueError if these kernels cannot run."""
        del kind
        if jnp.dtype(dtype) not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
            raise ValueError(
                f"dtype {jnp.dtype(dtype)}; it takes float32 and bfloat16 ('reference' and "
                f"'chunked' take float64)"
            )
        if shape[2] > MAX_WIDTH:
            raise ValueError(f"width {shape[2]}; it takes up to {MAX_WIDTH} ('chunked' takes any)")
        if form.dense:
            raise ValueError("PairMask(keep=…) is a dense mask; 'reference' and 'chunked' take it")

    # ----------------------------------------------------------------------------------------------

    def softmax_forward(
        self, x, y, scale, rows: Side, cols: Side, form: Form
    ) -> tuple[Stats, Stats]:
        """As `Chunked.softmax_forward`."""
        n = y.shape[0]
        if n <= MAX_COLUMNS:
            return self._forward(x, y, scale, jnp.zeros_like(scale), rows, cols, form)
        parts = []
        for start in range(0, n, MAX_COLUMNS):
            part = {k: v[start : start + MAX_COLUMNS] for k, v in cols.items()}
            parts.append(
                self._forward(
                    x,
                    y[start : start + MAX_COLUMNS],
                    scale,
                    jnp.zeros_like(scale),
                    rows,
                    part,
                    form,
                )
            )
        row = functools.reduce(lambda a, b: tiles.merge_stats(a, b, scale), [p[0] for p in parts])
        return row, jax.tree.map(lambda *a: jnp.concatenate(a), *[p[1] for p in parts])

    def softmax_gradient(
        self, x, y, scale, rows: Side, cols: Side, form: Form, out: jnp.dtype, swapped: bool
    ):
        """See `core.TwoPasses`."""
        dx, sums = self._gradient(
            x, y, scale, jnp.zeros_like(scale), rows, cols, form, out, "softmax", swapped
        )
        return dx, sums[0]

    def sigmoid_forward(self, x, y, scale, bias, rows: Side, cols: Side, form: Form) -> jax.Array:
        """As `Chunked.sigmoid_forward`."""
        return self._forward(x, y, scale, bias, rows, cols, form, "sigmoid")[0]["loss"]

    def sigmoid_gradient(
        self, x, y, scale, bias, rows: Side, cols: Side, form: Form, out: jnp.dtype, swapped: bool
    ):
        """See `core.TwoPasses`."""
        dx, sums = self._gradient(x, y, scale, bias, rows, cols, form, out, "sigmoid", swapped)
        return dx, sums[0], sums[1]

    # ----------------------------------------------------------------------------------------------

    def _forward(self, x, y, scale, bias, rows, cols, form, kind="softmax"):
        m = x.shape[0]
        n = y.shape[0]
        tile = self.forward
        x, y, rows, cols, form, (bm, bn) = _padded(x, y, rows, cols, form, tile)
        ni = x.shape[0] // bm
        nj = y.shape[0] // bn
        width = x.shape[1]
        names = _stat_names(form) if kind == "softmax" else ("loss",)
        kernel = functools.partial(
            _forward_kernel,
            kind=kind,
            form=form,
            names=names,
            row_names=rows.names,
            col_names=cols.names,
        )
        row, col = pl.pallas_call(
            kernel,
            grid=(ni, nj),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *_specs(bm, bn, width, rows, cols)],
            out_specs=[
                pl.BlockSpec((packing.SUBLANES, bm), lambda i, j: (0, i)),
                # One block for all columns, never moved: every row block adds to it.
                pl.BlockSpec((nj, packing.SUBLANES, bn), lambda i, j: (0, 0, 0)),
            ],
            out_shape=[
                struct((packing.SUBLANES, ni * bm), jnp.float32, x),
                struct((nj, packing.SUBLANES, bn), jnp.float32, x),
            ],
            scratch_shapes=[
                *_transposed(bm, rows),
                pltpu.VMEM((bm, packing.SUBLANES), jnp.float32),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=self.vmem
            ),
            cost_estimate=_cost(
                x, y, products=1, row_blocks=ni, out=8 * 4 * (x.shape[0] + y.shape[0])
            ),
            interpret=self.interpret,
            name=f"contrastive_{kind}_forward",
        )(_scalars(scale, bias), *_operands(x, y, rows, cols))
        col = col.swapaxes(0, 1).reshape(packing.SUBLANES, -1)
        return {k: row[i, :m] for i, k in enumerate(names)}, {
            k: col[i, :n] for i, k in enumerate(names)
        }

    def _gradient(self, x, y, scale, bias, rows, cols, form, out, kind, swapped):
        """dx and sums `[8, M]`, which hold each row's parts of d scale and d bias."""
        m, width = x.shape
        x, y, rows, cols, form, (bm, bn) = _padded(x, y, rows, cols, form, self.backward)
        ni = x.shape[0] // bm
        nj = y.shape[0] // bn
        wide = x.shape[1]
        kernel = functools.partial(
            _backward_kernel,
            kind=kind,
            form=form,
            swapped=swapped,
            row_names=rows.names,
            col_names=cols.names,
        )
        dx, sums = pl.pallas_call(
            kernel,
            grid=(ni, nj),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *_specs(bm, bn, wide, rows, cols)],
            out_specs=[
                pl.BlockSpec((bm, wide), lambda i, j: (i, 0)),
                pl.BlockSpec((packing.SUBLANES, bm), lambda i, j: (0, i)),
            ],
            out_shape=[
                struct(x.shape, out, x),
                struct((packing.SUBLANES, x.shape[0]), jnp.float32, x),
            ],
            scratch_shapes=[
                *_transposed(bm, rows),
                pltpu.VMEM((bm, packing.SUBLANES), jnp.float32),
                pltpu.VMEM((bm, wide), jnp.float32),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.vmem
            ),
            cost_estimate=_cost(
                x, y, products=2, row_blocks=ni, out=x.size * jnp.dtype(out).itemsize
            ),
            interpret=self.interpret,
            name=f"contrastive_{kind}_{'dy' if swapped else 'dx'}",
        )(_scalars(scale, bias), *_operands(x, y, rows, cols))
        return dx[:m, :width], sums[:, :m]


# --------------------------------------------------------------------------------------------------
# Kernels


def _forward_kernel(scalars, *refs, kind, form: Form, names, row_names, col_names):
    (x, y, rf, ri, cf, ci, *teacher), (row_out, col_out), (rf_t, ri_t, row_acc) = _split(
        refs, form, 2
    )
    i = pl.program_id(0)
    j = pl.program_id(1)
    scale = scalars[0, 0]
    bias = scalars[0, 1]

    @pl.when(j == 0)
    def _():
        _transpose(rf, ri, rf_t, ri_t)

    rows = sublanes(rf_t, ri_t, row_names)
    cols = lanes(cf, ci, col_names)
    if form.soft:
        rows = dict(rows, teacher=teacher[0][...])
        cols = dict(cols, teacher=teacher[1][...])
    c = matmul(x[...], y[...], (1, 1))
    if kind == "softmax":
        row, col = tiles.softmax_stats(c, scale, rows, cols, form)
        empty = _empty(names, form)
    else:
        row = dict(
            loss=jnp.sum(tiles.sigmoid_loss(scale * c + bias, rows, cols, form), 1, keepdims=True)
        )
        col = {}
        empty = [0.0]

    def join(a, b):
        return (
            tiles.merge_stats(a, b, scale) if kind == "softmax" else {"loss": a["loss"] + b["loss"]}
        )

    @pl.when(j == 0)
    def _():
        for k, start in enumerate(empty):
            row_acc[:, k : k + 1] = jnp.full_like(row[names[k]], start)

    new = join({k: row_acc[:, i : i + 1] for i, k in enumerate(names)}, row)
    for k, name in enumerate(names):
        row_acc[:, k : k + 1] = new[name]

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        row_out[...] = row_acc[...].T

    if kind == "softmax":

        @pl.when(i == 0)
        def _():
            for k, start in enumerate(empty):
                col_out[j, k : k + 1, :] = jnp.full_like(col[names[k]], start)

        new_col = join({k: col_out[j, i : i + 1, :] for i, k in enumerate(names)}, col)
        for k, name in enumerate(names):
            col_out[j, k : k + 1, :] = new_col[name]


def _backward_kernel(scalars, *refs, kind, form: Form, swapped, row_names, col_names):
    """dx of one row block; with `swapped`, x, y and the vectors' sides have changed places and this
    is dy."""
    (x, y, rf, ri, cf, ci, *teacher), (dx, sums_out), (rf_t, ri_t, sums, acc) = _split(
        refs, form, 2
    )
    j = pl.program_id(1)
    scale = scalars[0, 0]
    bias = scalars[0, 1]

    @pl.when(j == 0)
    def _():
        _transpose(rf, ri, rf_t, ri_t)
        acc[...] = jnp.zeros_like(acc)
        sums[...] = jnp.zeros_like(sums)

    rows = sublanes(rf_t, ri_t, row_names)
    cols = lanes(cf, ci, col_names)
    if swapped:
        rows, cols = cols, rows
    if (
        form.soft
    ):  # its product takes the operands in the tile's order, whichever side they belong to
        rows = dict(rows, teacher=teacher[0][...])
        cols = dict(cols, teacher=teacher[1][...])
    c = matmul(x[...], y[...], (1, 1))
    if kind == "softmax":
        grad = tiles.softmax_gradient(c, scale, rows, cols, form)
    else:
        grad = tiles.sigmoid_gradient(scale * c + bias, rows, cols, form)
        sums[:, 1:2] = sums[:, 1:2] + jnp.sum(grad, 1, keepdims=True)
    acc[...] += matmul(grad.astype(y.dtype), y[...], (1, 0))

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        total = acc[...]
        dx[...] = (scale * total).astype(dx.dtype)
        sums[:, 0:1] = jnp.sum(x[...].astype(jnp.float32) * total, 1, keepdims=True)
        sums_out[...] = sums[...].T


def _split(refs, form: Form, outputs: int):
    inputs = 8 if form.soft else 6
    return refs[:inputs], refs[inputs : inputs + outputs], refs[inputs + outputs :]


def _transpose(floats, integers, floats_t, integers_t):
    floats_t[...] = floats[...].T
    integers_t[...] = integers[...].T


# --------------------------------------------------------------------------------------------------
# Operands


def _lanes(n: int) -> int:
    return -(-n // LANES) * LANES


def _fit(n: int, largest: int) -> int:
    """Block size of at most `largest`, a multiple of 128, that cuts `n` with the least padding."""
    parts = -(-_lanes(n) // largest)
    return _lanes(-(-n // parts))


def _padded(x, y, rows: Side, cols: Side, form: Form, tile: Tile):
    """Operands padded to whole blocks and lanes; rows and columns that were added are not `ok`."""
    m = x.shape[0]
    n = y.shape[0]
    width = x.shape[1]
    bm = _fit(m, tile.rows)
    bn = _fit(n, tile.cols)
    pm = -m % bm
    pn = -n % bn
    if pm or pn:
        rows = rows if "ok" in rows else dict(rows, ok=jnp.ones(m, jnp.float32))
        cols = cols if "ok" in cols else dict(cols, ok=jnp.ones(n, jnp.float32))
        form = dataclasses.replace(form, valid=True)
    if pm or width % LANES:
        x = jnp.pad(x, ((0, pm), (0, -width % LANES)))
    if pn or width % LANES:
        y = jnp.pad(y, ((0, pn), (0, -width % LANES)))
    return x, y, pack(rows, m + pm), pack(cols, n + pn), form, (bm, bn)


def _scalars(scale, bias) -> jax.Array:
    return jnp.stack([scale, bias]).astype(jnp.float32).reshape(1, 2)


def _operands(x, y, rows: Packed, cols: Packed) -> list[jax.Array]:
    teachers = [] if rows.teacher is None else [rows.teacher, cols.teacher]
    return [x, y, rows.floats, rows.integers, cols.floats, cols.integers, *teachers]


def _specs(bm: int, bn: int, width: int, rows: Packed, cols: Packed) -> list[pl.BlockSpec]:
    specs = [
        pl.BlockSpec((bm, width), lambda i, j: (i, 0)),
        pl.BlockSpec((bn, width), lambda i, j: (j, 0)),
        *(
            pl.BlockSpec((a.shape[0], bm), lambda i, j: (0, i))
            for a in (rows.floats, rows.integers)
        ),
        *(
            pl.BlockSpec((a.shape[0], bn), lambda i, j: (0, j))
            for a in (cols.floats, cols.integers)
        ),
    ]
    if rows.teacher is not None:
        specs.append(pl.BlockSpec((bm, rows.teacher.shape[1]), lambda i, j: (i, 0)))
        specs.append(pl.BlockSpec((bn, cols.teacher.shape[1]), lambda i, j: (j, 0)))
    return specs


def _transposed(bm: int, rows: Packed) -> list[Any]:
    return [pltpu.VMEM((bm, a.shape[0]), a.dtype) for a in (rows.floats, rows.integers)]


def _stat_names(form: Form) -> tuple[str, ...]:
    return tuple(tiles.empty_stats(1, form, jnp.zeros(1, jnp.float32)))


def _empty(names, form: Form) -> list[float]:
    low = tiles.lowest(jnp.float32)
    return [low if k == "m" or (k == "tm" and form.soft == "softmax") else 0.0 for k in names]


def _cost(x, y, products: int, row_blocks: int, out: int) -> pl.CostEstimate:
    pairs = x.shape[0] * y.shape[0]
    return pl.CostEstimate(
        flops=2 * products * pairs * x.shape[1],
        transcendentals=2 * pairs,
        bytes_accessed=(x.size + row_blocks * y.size) * x.dtype.itemsize + out,
    )
