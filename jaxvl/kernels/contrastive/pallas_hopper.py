"""Pallas kernels for Hopper (Mosaic GPU): products by wgmma, operands by TMA, bfloat16.

A program is one warpgroup with a tile of logits in its registers; two share a multiprocessor, so
that one computes exponentials while the other one multiplies:

    product     chunks of the width travel to shared memory, some of them ahead of the wgmma that
                reads them
    the rest    columns of the tile are taken in parts, which bounds the live registers; of each part
                the statistics (joined over the parts) or the gradient of the logits, which leaves
                through shared memory

What is done with the tiles is in `segments`. A side's float vectors stand in shared memory as
`[F, m]`, its integers as `[I, m]`, brought there by TMA while the product runs.

One warpgroup, since reductions over the rows of a tile cross warps through a scratch that Mosaic
gives to all warpgroups of a program at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxvl.kernels.contrastive import sizes, tiles
from jaxvl.kernels.contrastive.chips import MIB, Chip
from jaxvl.kernels.contrastive.packing import struct
from jaxvl.kernels.contrastive.segments import Segmented, Task
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats

SHARED = 232448  # bytes a program may have
SHARED_BY_ALL = 233472  # bytes of a multiprocessor, of which a program takes RESERVED more
RESERVED = 1024
ALIGNMENT = 1024  # bytes, of every allocation in shared memory
ACCUMULATORS = 128 * 128  # of one warpgroup: 128 of the 255 registers of a thread
SWIZZLED = 64  # bfloat16 elements of a row of 128 bytes
SCRATCH = 4096  # bytes, of reductions that cross warps: a part of 32 columns at once
FLOATS = 8  # vectors of a side at most (rows, label smoothing, mixup)
BARRIERS = 128  # bytes
ROWS_TOGETHER = 16  # blocks of rows whose programs run at the same time, for the L2 cache
MOST_RESIDENT = 2  # programs of 128 threads with 255 registers each
WORK = {"forward": 51, "backward": 36}  # instructions for a pair after the product, in PTX


@dataclasses.dataclass(frozen=True)
class Tile:
    """One program's tile of logits.

    Attributes:
      rows: a multiple of 64 (wgmma's m).
      cols: a multiple of 64; rows x cols <= 128 x 128.
      chunk: part of the width per step, a multiple of 64.
      stages: chunks in shared memory, at least 2: one is read, the others are on their way.
      part: columns whose statistics or gradients are computed at once, 32 or 64.
      cluster: programs, one below the other, that receive the chunks of their columns together (by
        TMA's multicast), 1 or 2.
    """

    rows: int = 128
    cols: int = 128
    chunk: int = 64
    stages: int = 3
    part: int = 32
    cluster: int = 1

    @property
    def unit(self) -> int:
        """Rows of programs that run together."""
        return self.rows * self.cluster

    def __post_init__(self):
        for field in ("rows", "cols", "chunk"):
            size = getattr(self, field)
            if not (isinstance(size, int) and size > 0 and size % 64 == 0):
                raise ValueError(f"{field}: {size!r} is not valid; must be a multiple of 64")
        if self.rows > 256 or self.chunk > 256 or self.rows * self.cols > ACCUMULATORS:
            raise ValueError(
                f"rows: {self.rows} x {self.cols}, chunk {self.chunk} is not valid; rows x cols "
                f"must be <= {ACCUMULATORS}, rows and chunk <= 256"
            )
        if not (isinstance(self.stages, int) and 2 <= self.stages <= 8):
            raise ValueError(f"stages: {self.stages!r} is not valid; must be in [2, 8]")
        if self.part not in (32, 64):
            raise ValueError(f"part: {self.part!r} is not valid; must be 32 or 64")
        if self.cluster not in (1, 2):
            raise ValueError(f"cluster: {self.cluster!r} is not valid; must be 1 or 2")


def shared_bytes(tile: Tile, groups: int = 1) -> int:
    """Bytes of shared memory of one program at most; `groups`: of the form."""
    side = tile.rows + tile.cols
    product = tile.stages * side * tile.chunk * 2
    gradient = tile.rows * tile.cols * 2  # after the product: the same bytes
    vectors = 0
    for length in (tile.rows, tile.cols):
        vectors += _aligned(4 * FLOATS * length) + _aligned(4 * (2 + groups) * length)
    return max(product, gradient) + vectors + _aligned(SCRATCH) + BARRIERS


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def resident(tile: Tile) -> int:
    """Programs that share a multiprocessor."""
    return min(MOST_RESIDENT, SHARED_BY_ALL // (shared_bytes(tile) + RESERVED))


def _modelled(shape: tuple[int, int, int], chip: Chip, work: int) -> Tile:
    """The tile with the least `sizes.program_seconds`; of equal ones that with the most stages, up
    to 4."""

    def cost(tile: Tile) -> tuple[float, int, int]:
        size = tile.rows, tile.cols
        seconds = sizes.program_seconds(chip, shape, *size, resident(tile), work)
        return seconds, abs(tile.rows - tile.cols), -tile.stages

    some = []
    for rows, cols in itertools.product((64, 128, 192, 256), repeat=2):
        if rows * cols <= ACCUMULATORS:
            some += [Tile(rows, cols, stages=stages) for stages in (2, 3, 4)]
    return min((tile for tile in some if shared_bytes(tile) <= SHARED), key=cost)


def is_hopper(device_kind: str) -> bool:
    """Whether a GPU has compute capability 9.0, as H100, H200, H20, H800 and GH200."""
    return re.search(r"\bG?H\d{2,3}\b", device_kind, re.IGNORECASE) is not None


@dataclasses.dataclass(frozen=True)
class PallasHopper(Segmented):
    """Block operations of the Hopper kernels.

    Attributes:
      forward, backward: tiles of the two passes.
      segment: bytes that the partial statistics or the pair gradients of one segment of rows may
        take. Larger ones than Triton's: for each, dy is read and written once.
      interpret: run on any backend, slowly, for tests; may also be the interpreter's parameters.
    """

    forward: Tile = Tile()
    backward: Tile = Tile()
    segment: int = 256 * MIB
    interpret: Any = False
    name: ClassVar[str] = "pallas_hopper"

    @property
    def interpreted(self) -> bool:
        return bool(self.interpret)

    def __post_init__(self):
        self.check_segment()

    @classmethod
    def fitting(
        cls, shape: tuple[int, int, int], chip: Chip, device_kind: str = ""
    ) -> PallasHopper:
        """Measured tiles of `device_kind`, else those of the cost model for (M, N, D)."""
        found = {}
        for which in sizes.PASSES:
            tile = sizes.measured(device_kind, cls.name, which, jnp.bfloat16, shape[2])
            found[which] = Tile(**tile) if tile else _modelled(shape, chip, WORK[which])
        return cls(**found)

    def check(self, shape, dtype, kind, form: Form) -> None:
        """Raises ValueError if these kernels cannot run."""
        del kind, shape
        if jnp.dtype(dtype) != jnp.dtype(jnp.bfloat16):
            raise ValueError(f"dtype {jnp.dtype(dtype)}; it takes bfloat16")
        if form.dense:
            raise ValueError("PairMask(keep=…) is a dense mask; 'reference' and 'chunked' take it")
        if form.soft:
            raise ValueError("SoftTargets need a second product, in float32")
        for tile in (self.forward, self.backward):
            if (need := shared_bytes(tile, len(form.groups))) > SHARED:
                raise ValueError(f"{tile} needs {need} bytes of shared memory; there are {SHARED}")

    def tile_of(self, which: str) -> Tile:
        """As `Segmented.tile_of`."""
        return self.forward if which == "forward" else self.backward

    def columns(self, y: jax.Array) -> jax.Array:
        """`[D, N]`: the second operand of wgmma as it is written in a product."""
        return y.T

    def statistics(self, x, y, scalars, rows: Side, cols: Side, task: Task) -> tuple[Stats, Stats]:
        """As `Segmented.statistics`."""
        tile = self.forward
        m = x.shape[0]
        n = y.shape[1]
        of_rows = struct((n // tile.cols, m), jnp.float32, x)
        of_cols = struct((m // tile.rows, n), jnp.float32, x)
        out = [of_rows] * len(task.stats) + [of_cols] * len(task.stats)
        out = self._call(_statistics, tile, out, x, y, scalars, rows, cols, task)
        row, col = out[: len(task.stats)], out[len(task.stats) :]
        return dict(zip(task.stats, row)), dict(zip(task.stats, col))

    def gradients(
        self, x, y, scalars, rows: Side, cols: Side, task: Task
    ) -> tuple[jax.Array, jax.Array]:
        """As `Segmented.gradients`."""
        tile = self.backward
        m = x.shape[0]
        n = y.shape[1]
        out = [struct((m, n), x.dtype, x), struct((n // tile.cols, m), jnp.float32, x)]
        grad, sums = self._call(_gradients, tile, out, x, y, scalars, rows, cols, task)
        return grad, sums

    def _call(self, finish: Callable, tile: Tile, out: list, x, y, scalars, rows, cols, task: Task):
        sides = _Vectors(rows, tile.rows), _Vectors(cols, tile.cols)
        arrays = *sides[0].arrays, *sides[1].arrays
        blocks = x.shape[0] // tile.rows, y.shape[1] // tile.cols
        count = len(arrays)
        # The interpreter has no multicast: there each program fetches for itself.
        multicast = tile.cluster > 1 and not self.interpret

        def kernel(scalars, x, y, *refs):
            *refs, row_vectors, col_vectors, arrived = refs
            vectors, outputs = refs[:count], refs[count:]
            i, j = _place(blocks, tile.cluster)
            sides[0].fetch(vectors[: len(sides[0].arrays)], row_vectors, i, arrived)
            sides[1].fetch(vectors[len(sides[0].arrays) :], col_vectors, j, arrived)
            cosines = _product(x, y, i, j, tile, multicast)
            plgpu.barrier_wait(arrived)
            parts = _parts(cosines, sides, (row_vectors, col_vectors), tile)
            finish(parts, scalars[0], scalars[1], outputs, i, j, tile, task)

        call = plgpu.kernel(
            kernel,
            out_type=out,
            grid=(blocks[0] // tile.cluster * blocks[1],),
            grid_names=("tile",),
            cluster=(tile.cluster,) if tile.cluster > 1 else (),
            cluster_names=("below",) if tile.cluster > 1 else (),
            scratch_types=[
                sides[0].scratch(),
                sides[1].scratch(),
                plgpu.Barrier(num_arrivals=count),
            ],
            compiler_params=plgpu.CompilerParams(
                lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
                reduction_scratch_bytes=SCRATCH,
            ),
            kernel_name=task.name,
            interpret=_interpreter() if self.interpret is True else self.interpret or None,
        )
        return call(scalars, x, y, *arrays)


def _interpreter() -> Any:
    """Parameters of the interpreter of Mosaic GPU's kernels, for which jax has no public name."""
    from jax._src.pallas.mosaic_gpu.interpret import params

    return params.InterpretGPUParams()


class _Vectors:
    """Vectors of one side, and their places in shared memory.

    Args:
      side: names -> `[M]`; floats as float32, others as int32.
      length: of a tile.
    """

    def __init__(self, side: Side, length: int):
        floats = [k for k, v in side.items() if jnp.issubdtype(v.dtype, jnp.floating)]
        integers = [k for k in side if k not in floats]
        self.length = length
        self.names = {"floats": floats, "integers": integers}
        self.arrays = [side[k].astype(jnp.float32) for k in floats]
        self.arrays += [side[k].astype(jnp.int32) for k in integers]

    def scratch(self) -> dict[str, Any]:
        """Shared memory of a tile's part of them."""
        dtypes = {"floats": jnp.float32, "integers": jnp.int32}
        return {
            kind: plgpu.SMEM((len(names), self.length), dtypes[kind])
            for kind, names in self.names.items()
            if names
        }

    def fetch(self, refs: Sequence[Any], shared: Mapping[str, Any], block, arrived) -> None:
        """Starts the copies of a block."""
        of_block = pl.ds(block * self.length, self.length)
        places = [shared[kind].at[k] for kind, n in self.names.items() for k in range(len(n))]
        for ref, place in zip(refs, places, strict=True):
            plgpu.copy_gmem_to_smem(ref.at[of_block], place, arrived)

    def load(self, shared: Mapping[str, Any], first: int, length: int) -> Side:
        """Vectors `[length]`."""
        part = pl.ds(first, length)
        return {
            name: shared[kind][k, part]
            for kind, names in self.names.items()
            for k, name in enumerate(names)
        }


class _Flat(tiles.Units):
    """Mosaic's form of the operations on a tile: vectors are `[m]` and `[n]`, and it has no
    log1p."""

    def sum(self, x, axis):
        return jnp.sum(x, axis)

    def max(self, x, axis):
        return jnp.max(x, axis)

    def spread(self, vector, axis, shape):
        return lax.broadcast_in_dim(vector, shape, (1 - axis,))

    def log1p(self, x):
        """What the rounding of 1 + x has lost is added to first order."""
        near = 1.0 + x
        return jnp.log(near) + (x - (near - 1.0)) / near


FLAT = _Flat()


def _place(blocks: tuple[int, int], cluster: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of this program's tile."""
    groups = blocks[0] // cluster
    along_rows = min(ROWS_TOGETHER // cluster, groups)
    i, j = plgpu.planar_snake(lax.axis_index("tile"), (groups, blocks[1]), 0, along_rows)
    return (i, j) if cluster == 1 else (i * cluster + lax.axis_index("below"), j)


def _product(x, y, i, j, tile: Tile, multicast: bool) -> jax.Array:
    """Cosines Float32[rows cols] of tile (i, j) of `x` `[M, D]` and `y` `[D, N]`."""
    layout = plgpu.TilingTransform((8, SWIZZLED)), plgpu.SwizzleTransform(2 * SWIZZLED)
    steps = x.shape[1] // tile.chunk
    stages = min(tile.stages, steps)
    of_rows = pl.ds(i * tile.rows, tile.rows)
    of_cols = pl.ds(j * tile.cols, tile.cols)
    together = dict(collective_axes="below") if multicast else {}

    def staged(x_chunks, y_chunks, arrived, read):
        def fetch(k, stage):
            chunk = pl.ds(k * tile.chunk, tile.chunk)
            at = arrived.at[stage]
            plgpu.copy_gmem_to_smem(x.at[of_rows, chunk], x_chunks.at[stage], at)
            plgpu.copy_gmem_to_smem(y.at[chunk, of_cols], y_chunks.at[stage], at, **together)

        def accumulate(accumulator):
            @pl.loop(0, steps)
            def _step(k):
                stage = lax.rem(k, stages)
                plgpu.barrier_wait(arrived.at[stage])
                plgpu.wgmma(accumulator, x_chunks.at[stage], y_chunks.at[stage])
                plgpu.wgmma_wait(1)  # the one before has read its chunks
                later = k - 1 + stages

                @pl.when((k >= 1) & (later < steps))
                def _fetch_later():
                    free = lax.rem(later, stages)
                    if tile.cluster > 1:  # and so has that of the other program
                        plgpu.barrier_arrive(read.at[free])
                        plgpu.barrier_wait(read.at[free])
                    fetch(later, free)

            return accumulator[...]

        for k in range(stages):
            fetch(k, k)
        size = tile.rows, tile.cols
        return pl.run_scoped(accumulate, plgpu.ACC(size, jnp.float32))

    read = plgpu.Barrier(num_barriers=stages)
    if multicast:
        read = plgpu.ClusterBarrier(collective_axes=("below",), num_barriers=stages)
    cosines = pl.run_scoped(
        staged,
        plgpu.SMEM((stages, tile.rows, tile.chunk), x.dtype, transforms=layout),
        plgpu.SMEM((stages, tile.chunk, tile.cols), y.dtype, transforms=layout),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        read,
    )
    # A warp may be done while another one's wgmma still reads the chunks, whose place is used again.
    plgpu.commit_smem()
    return cosines


def _parts(
    cosines: jax.Array, sides, shared, tile: Tile
) -> Iterator[tuple[int, jax.Array, Side, Side]]:
    """First column, cosines and vectors, as wide as these, of each part of a tile."""
    shape = tile.rows, tile.part
    for first in range(0, tile.cols, tile.part):
        rows = sides[0].load(shared[0], 0, tile.rows)
        cols = sides[1].load(shared[1], first, tile.part)
        yield (
            first,
            cosines[:, first : first + tile.part],
            {k: FLAT.spread(v, 1, shape) for k, v in rows.items()},
            {k: FLAT.spread(v, 0, shape) for k, v in cols.items()},
        )


def _statistics(parts, scale, bias, outputs, i, j, tile: Tile, task: Task) -> None:
    """Statistics of a tile, to `outputs`: of its rows, then of its columns."""
    count = len(task.stats)

    def of_part(cosines, rows, cols):
        if task.kind == "softmax":
            return tiles.softmax_stats(cosines, scale, rows, cols, task.form, FLAT)
        loss = tiles.sigmoid_loss(scale * cosines + bias, rows, cols, task.form, FLAT)
        return {"loss": FLAT.sum(loss, 1)}, {"loss": FLAT.sum(loss, 0)}

    def join(a, b):
        if task.kind == "softmax":
            return tiles.merge_stats(a, b, scale)
        return {"loss": a["loss"] + b["loss"]}

    def write(of_rows, of_cols):
        total = None
        for first, cosines, rows, cols in parts:
            row, col = of_part(cosines, rows, cols)
            total = row if total is None else join(total, row)
            for k, name in enumerate(task.stats):
                of_cols[k, pl.ds(first, tile.part)] = col[name]
        for k, name in enumerate(task.stats):
            of_rows[k, :] = total[name]
        plgpu.commit_smem()
        for k in range(count):
            place = outputs[k].at[j, pl.ds(i * tile.rows, tile.rows)]
            plgpu.copy_smem_to_gmem(of_rows.at[k], place)
            place = outputs[count + k].at[i, pl.ds(j * tile.cols, tile.cols)]
            plgpu.copy_smem_to_gmem(of_cols.at[k], place)
        plgpu.wait_smem_to_gmem(0)

    sizes = (count, tile.rows), (count, tile.cols)
    pl.run_scoped(write, *(plgpu.SMEM(size, jnp.float32) for size in sizes))


def _gradients(parts, scale, bias, outputs, i, j, tile: Tile, task: Task) -> None:
    """Gradients of a tile's logits, and their sums over its columns, to `outputs`."""
    grad_out, sums_out = outputs

    def write(staged, sums):
        total = None
        for first, cosines, rows, cols in parts:
            if task.kind == "softmax":
                grad = tiles.softmax_gradient(cosines, scale, rows, cols, task.form)
            else:
                grad = tiles.sigmoid_gradient(scale * cosines + bias, rows, cols, task.form)
            row = FLAT.sum(grad, 1)
            total = row if total is None else total + row
            place = staged.at[first // tile.part]
            place[...] = grad.astype(staged.dtype)
            plgpu.commit_smem()
            columns = pl.ds(j * tile.cols + first, tile.part)
            plgpu.copy_smem_to_gmem(place, grad_out.at[pl.ds(i * tile.rows, tile.rows), columns])
        sums[...] = total
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(sums, sums_out.at[j, pl.ds(i * tile.rows, tile.rows)])
        plgpu.wait_smem_to_gmem(0)

    layout = plgpu.TilingTransform((8, tile.part)), plgpu.SwizzleTransform(2 * tile.part)
    size = tile.cols // tile.part, tile.rows, tile.part
    pl.run_scoped(
        write,
        plgpu.SMEM(size, grad_out.dtype, transforms=layout),
        plgpu.SMEM((tile.rows,), jnp.float32),
    )
