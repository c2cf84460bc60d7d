"""Pallas kernels for Hopper (Mosaic GPU): products by wgmma, operands by TMA, bfloat16.

The kernels are in `hopper_kernels`, what is done with their tiles in `segments`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxvl.chips import MIB, Chip
from jaxvl.kernels.contrastive import sizes
from jaxvl.kernels.contrastive.hopper_kernels import (
    ACCUMULATORS,
    BELOW,
    Tile,
    Vectors,
    gradients,
    position,
    product,
    statistics,
)
from jaxvl.kernels.contrastive.packing import struct
from jaxvl.kernels.contrastive.segments import Segmented, Task
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side, Stats

SHARED = 232448  # bytes a program may have
SHARED_BY_ALL = 233472  # bytes of a multiprocessor, of which a program takes RESERVED more
RESERVED = 1024
ALIGNMENT = 1024  # bytes, of every allocation in shared memory
SCRATCH = 4096  # bytes, of reductions that cross warps: a part of 32 columns at once
FLOATS = 8  # vectors of a side at most (rows, label smoothing, mixup)
BARRIERS = 128  # bytes
MOST_RESIDENT = 2  # programs of 128 threads with 255 registers each
WORK = {"forward": 51, "backward": 36}  # instructions for a pair after the product, in PTX


def shared_bytes(tile: Tile, groups: int = 1) -> int:
    """Bytes of shared memory of one program at most; `groups`: of the form."""
    side = tile.rows + tile.cols
    chunks = tile.stages * side * tile.chunk * 2
    gradient = tile.rows * tile.cols * 2  # after the product: the same bytes
    vectors = 0
    for length in (tile.rows, tile.cols):
        vectors += _aligned(4 * FLOATS * length) + _aligned(4 * (2 + groups) * length)
    return max(chunks, gradient) + vectors + _aligned(SCRATCH) + BARRIERS


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
        self.check_form(form)
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
        out = self._call(statistics, tile, out, x, y, scalars, rows, cols, task)
        count = len(task.stats)
        return dict(zip(task.stats, out[:count])), dict(zip(task.stats, out[count:]))

    def gradients(
        self, x, y, scalars, rows: Side, cols: Side, task: Task
    ) -> tuple[jax.Array, jax.Array]:
        """As `Segmented.gradients`."""
        tile = self.backward
        m = x.shape[0]
        n = y.shape[1]
        out = [struct((m, n), x.dtype, x), struct((n // tile.cols, m), jnp.float32, x)]
        grad, sums = self._call(gradients, tile, out, x, y, scalars, rows, cols, task)
        return grad, sums

    def _call(self, finish: Callable, tile: Tile, out: list, x, y, scalars, rows, cols, task: Task):
        rows = Vectors(rows, tile.rows)
        cols = Vectors(cols, tile.cols)
        blocks = x.shape[0] // tile.rows, y.shape[1] // tile.cols
        # The interpreter has no multicast: there each program fetches for itself.
        multicast = tile.cluster > 1 and not self.interpret

        def kernel(scalars, x, y, row_refs, col_refs, *refs):
            *outputs, row_shared, col_shared, arrived = refs
            i, j = position(blocks, tile.cluster)
            rows.fetch(row_refs, row_shared, i, arrived)
            cols.fetch(col_refs, col_shared, j, arrived)
            cosines = product(x, y, i, j, tile, multicast)
            plgpu.barrier_wait(arrived)
            sides = (rows, row_shared), (cols, col_shared)
            finish(cosines, sides, scalars, outputs, (i, j), tile, task)

        call = plgpu.kernel(
            kernel,
            out_type=out,
            grid=(blocks[0] // tile.cluster * blocks[1],),
            grid_names=("tile",),
            cluster=(tile.cluster,) if tile.cluster > 1 else (),
            cluster_names=(BELOW,) if tile.cluster > 1 else (),
            scratch_types=[
                rows.scratch(),
                cols.scratch(),
                plgpu.Barrier(num_arrivals=len(rows.arrays) + len(cols.arrays)),
            ],
            compiler_params=plgpu.CompilerParams(
                lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
                reduction_scratch_bytes=SCRATCH,
            ),
            kernel_name=task.name,
            interpret=_interpreter() if self.interpret is True else self.interpret or None,
        )
        return call(scalars, x, y, rows.arrays, cols.arrays)


def _interpreter() -> Any:
    """Parameters of the interpreter of Mosaic GPU's kernels, for which jax has no public name."""
    from jax._src.pallas.mosaic_gpu.interpret import params

    return params.InterpretGPUParams()
