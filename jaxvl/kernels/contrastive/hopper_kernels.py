"""Kernels for Hopper, written for Mosaic GPU: a program for each tile of logits.

A program is one warpgroup with its tile in its registers; two share a multiprocessor, so that one
computes exponentials while the other one multiplies:

    product     chunks of the width travel to shared memory, some of them ahead of the wgmma that
                reads them
    the rest    columns of the tile are taken in parts, which bounds the live registers; of each part
                the statistics (joined over the parts) or the gradient of the logits, which leaves
                through shared memory

One warpgroup, since reductions over the rows of a tile cross warps through a scratch that Mosaic
gives to all warpgroups of a program at once.

i, j: row and column of the program's tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxvl.kernels.contrastive import tiles
from jaxvl.kernels.contrastive.segments import Task
from jaxvl.kernels.contrastive.tiles import Side

ACCUMULATORS = 128 * 128  # of one warpgroup: 128 of the 255 registers of a thread
SWIZZLED = 64  # bfloat16 elements of a row of 128 bytes
ROWS_TOGETHER = 16  # blocks of rows whose programs run at the same time, for the L2 cache
BELOW = "below"  # axis of the programs of a cluster

Index = tuple[jax.Array, jax.Array]
Shared = Mapping[str, jax.Ref]  # of one side, in shared memory


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


class Vectors:
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

    def scratch(self) -> dict[str, pl.MemoryRef]:
        """Shared memory of a tile's part of them: floats as `[F, length]`, integers as `[I,
        length]`."""
        dtypes = {"floats": jnp.float32, "integers": jnp.int32}
        return {
            kind: plgpu.SMEM((len(names), self.length), dtypes[kind])
            for kind, names in self.names.items()
            if names
        }

    def fetch(self, refs: Sequence[jax.Ref], shared: Shared, block, arrived: jax.Ref) -> None:
        """Starts the copies of a block."""
        of_block = pl.ds(block * self.length, self.length)
        places = [shared[kind].at[k] for kind, n in self.names.items() for k in range(len(n))]
        for ref, to in zip(refs, places, strict=True):
            plgpu.copy_gmem_to_smem(ref.at[of_block], to, arrived)

    def load(self, shared: Shared, first: int, length: int) -> Side:
        """Vectors `[length]`."""
        part = pl.ds(first, length)
        return {
            name: shared[kind][k, part]
            for kind, names in self.names.items()
            for k, name in enumerate(names)
        }


Sides = tuple[tuple[Vectors, Shared], tuple[Vectors, Shared]]  # of the rows, of the columns


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


def position(blocks: tuple[int, int], cluster: int) -> Index:
    """Row and column of this program's tile."""
    groups = blocks[0] // cluster
    along_rows = min(ROWS_TOGETHER // cluster, groups)
    i, j = plgpu.planar_snake(lax.axis_index("tile"), (groups, blocks[1]), 0, along_rows)
    return (i, j) if cluster == 1 else (i * cluster + lax.axis_index(BELOW), j)


def product(x, y, i, j, tile: Tile, multicast: bool) -> jax.Array:
    """Cosines Float32[rows cols] of tile (i, j) of `x` `[M, D]` and `y` `[D, N]`."""
    layout = plgpu.TilingTransform((8, SWIZZLED)), plgpu.SwizzleTransform(2 * SWIZZLED)
    steps = x.shape[1] // tile.chunk
    stages = min(tile.stages, steps)
    of_rows = pl.ds(i * tile.rows, tile.rows)
    of_cols = pl.ds(j * tile.cols, tile.cols)
    together = dict(collective_axes=BELOW) if multicast else {}

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
        read = plgpu.ClusterBarrier(collective_axes=(BELOW,), num_barriers=stages)
    cosines = pl.run_scoped(
        staged,
        plgpu.SMEM((stages, tile.rows, tile.chunk), x.dtype, transforms=layout),
        plgpu.SMEM((stages, tile.chunk, tile.cols), y.dtype, transforms=layout),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        read,
    )
    # A warp may be done while another one's wgmma still reads the chunks, whose place is used
    # again.
    plgpu.commit_smem()
    return cosines


def _parts(
    cosines: jax.Array, sides: Sides, tile: Tile
) -> Iterator[tuple[int, jax.Array, Side, Side]]:
    """First column, cosines and vectors, as wide as these, of each part of a tile."""
    shape = tile.rows, tile.part
    for first in range(0, tile.cols, tile.part):
        (rows, row_shared), (cols, col_shared) = sides
        row = rows.load(row_shared, 0, tile.rows)
        col = cols.load(col_shared, first, tile.part)
        yield (
            first,
            cosines[:, first : first + tile.part],
            {k: FLAT.spread(v, 1, shape) for k, v in row.items()},
            {k: FLAT.spread(v, 0, shape) for k, v in col.items()},
        )


def statistics(
    cosines: jax.Array, sides: Sides, scalars, outputs, at: Index, tile: Tile, task: Task
) -> None:
    """Statistics of a tile, to `outputs`: of its rows, then of its columns."""
    i, j = at
    count = len(task.stats)
    scale = scalars[0]
    bias = scalars[1]

    def of_part(c, rows, cols):
        if task.kind == "softmax":
            return tiles.softmax_stats(c, scale, rows, cols, task.form, FLAT)
        loss = tiles.sigmoid_loss(scale * c + bias, rows, cols, task.form, FLAT)
        return {"loss": FLAT.sum(loss, 1)}, {"loss": FLAT.sum(loss, 0)}

    def join(a, b):
        if task.kind == "softmax":
            return tiles.merge_stats(a, b, scale)
        return {"loss": a["loss"] + b["loss"]}

    def write(of_rows, of_cols):
        total = None
        for first, c, rows, cols in _parts(cosines, sides, tile):
            row, col = of_part(c, rows, cols)
            total = row if total is None else join(total, row)
            for k, name in enumerate(task.stats):
                of_cols[k, pl.ds(first, tile.part)] = col[name]
        for k, name in enumerate(task.stats):
            of_rows[k, :] = total[name]
        plgpu.commit_smem()
        for k in range(count):
            to = outputs[k].at[j, pl.ds(i * tile.rows, tile.rows)]
            plgpu.copy_smem_to_gmem(of_rows.at[k], to)
            to = outputs[count + k].at[i, pl.ds(j * tile.cols, tile.cols)]
            plgpu.copy_smem_to_gmem(of_cols.at[k], to)
        plgpu.wait_smem_to_gmem(0)

    sizes = (count, tile.rows), (count, tile.cols)
    pl.run_scoped(write, *(plgpu.SMEM(size, jnp.float32) for size in sizes))


def gradients(
    cosines: jax.Array, sides: Sides, scalars, outputs, at: Index, tile: Tile, task: Task
) -> None:
    """Gradients of a tile's logits, and their sums over its columns, to `outputs`."""
    i, j = at
    scale = scalars[0]
    bias = scalars[1]
    grad_out, sums_out = outputs

    def write(staged, sums):
        total = None
        for first, c, rows, cols in _parts(cosines, sides, tile):
            if task.kind == "softmax":
                grad = tiles.softmax_gradient(c, scale, rows, cols, task.form)
            else:
                grad = tiles.sigmoid_gradient(scale * c + bias, rows, cols, task.form)
            row = FLAT.sum(grad, 1)
            total = row if total is None else total + row
            part = staged.at[first // tile.part]
            part[...] = grad.astype(staged.dtype)
            plgpu.commit_smem()
            columns = pl.ds(j * tile.cols + first, tile.part)
            to = grad_out.at[pl.ds(i * tile.rows, tile.rows), columns]
            plgpu.copy_smem_to_gmem(part, to)
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
