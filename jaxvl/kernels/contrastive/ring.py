"""All pairs of a sharded batch, inside shard_map: an all-gather, or a ring.

An all-gather for small batches, a ring for large ones; `grid` is for what lies between.

    device 0       device 1       device 2       device 3       device 4     each holds b = B / n
                                                                             rows of x and of y
    x0 | y0        x1 | y1        x2 | y2        x3 | y3        x4 | y4      at first
    x0 | y4 y1     x1 | y0 y2     x2 | y1 y3     x3 | y2 y4     x4 | y3 y0   round 1
    x0 | y3 y2     x1 | y4 y3     x2 | y0 y4     x3 | y1 y0     x4 | y2 y1   round 2

x stays. Every block of y travels both ways at once, with the vectors of its columns and what is
known about them so far: both directions of the links are used, and all have met after
(n - 1) / 2 rounds. Blocks are sent on before they are computed with, so that the copies hide
behind the arithmetic. Of an even number of devices the block of the opposite one comes last, from
one side.

Where links are slow (between slices, or hosts), the ring is one of rings: the fast one turns once
for every block that the slow one brings, which brings the next meanwhile. Behind a switch blocks go
one way, in n - 1 rounds, which already sends and receives all the time. `routes` says who is whose
neighbour, and where there is a switch.

All give the numbers of one device. The ring keeps O(b D) bytes per device whatever n is; the
all-gather keeps O(B D), which for small B costs less than the rounds' latency.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive import routes
from jaxvl.kernels.contrastive.bundle import bundle, bundled, fold
from jaxvl.kernels.contrastive.tiles import Side

BATCH_AXES = ("data", "fsdp")


def axis_size(axes: tuple[str, ...]) -> int:
    """Number of devices along the mesh `axes`."""
    mesh = jax.sharding.get_abstract_mesh()
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size


def batch_axes(mesh_axes: tuple[str, ...] | None) -> tuple[tuple[str, ...], bool]:
    """Mesh axes that shard the batch, and whether they are manual here (inside shard_map)."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if not mesh.empty else {}
    manual = tuple(a for a, t in kinds.items() if t == AxisType.Manual)
    if mesh_axes is None:
        if manual:
            raise ValueError(
                f"mesh_axes: is required inside shard_map over {manual}; name the axes that "
                f"shard the batch for the "
                "loss of the whole batch, or () for the loss of the rows at hand alone"
            )
        return tuple(a for a in BATCH_AXES if a in kinds), False
    for axis in mesh_axes:
        if axis not in kinds:
            raise ValueError(
                f"mesh_axes: {axis!r} is not an axis of the mesh set by jax.set_mesh (axes: "
                f"{tuple(kinds)})"
            )
    inside = {a in manual for a in mesh_axes}
    if len(inside) == 2 or (manual and inside == {False}):
        raise ValueError(
            f"mesh_axes: {mesh_axes} are not all manual inside shard_map over {manual}"
        )
    return tuple(mesh_axes), True in inside


def split_dense(rows: Side) -> tuple[Side, jax.Array | None]:
    """Row vectors without, and, the dense mask `[M, N_global]`, which is cut by columns."""
    return {k: v for k, v in rows.items() if k != "keep"}, rows.get("keep")


@dataclasses.dataclass(frozen=True)
class Gather:
    """Every device gathers all of y, computes its rows against it, and the column results are
    joined where they belong.

    Attributes:
      axes: manual mesh axes over which rows and columns are sharded.
    """

    axes: tuple[str, ...]
    partial: ClassVar[bool] = True
    at_once: ClassVar[bool] = False

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]:
        n = axis_size(self.axes)
        y_all, cols_all = lax.all_gather((y, cols), self.axes, axis=0, tiled=True)
        row, col = block(x, y_all, rows, cols_all)

        def home(a):
            # [N, …] partial results of this device's rows -> [n, N / n, …] those of all devices for
            # its own columns.
            return lax.all_to_all(a.reshape(n, -1, *a.shape[1:]), self.axes, 0, 0, tiled=True)

        return row, fold(join, jax.tree.map(home, col))

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)


# Up to so many blocks are written out one after the other, without a loop, whose last round would
# send blocks on that nobody needs.
UNROLLED = 4


@dataclasses.dataclass(frozen=True)
class Ring:
    """x stays, blocks of y go round both ways (see the top of this file).

    Attributes:
      axes: manual mesh axes over which rows and columns are sharded, taken as one in row-major
        order.
      sizes: devices in each ring, the slowest first.
      order: indices into the axes, as an array of these sizes in row-major order.
      ways: of each ring, 2 where blocks go both ways (see `routes.Rings`).
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    ways: tuple[int, ...]
    partial: ClassVar[bool] = True
    at_once: ClassVar[bool] = False

    @classmethod
    def over(cls, axes: tuple[str, ...]) -> Ring:
        """The ring over mesh axes, as their devices are wired."""
        rings = routes.rings(axes)
        return cls(axes, rings.places.shape, tuple(rings.places.flat), rings.ways)

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]:
        rows, dense = split_dense(rows)
        if dense is not None:
            cols = dict(cols, home=jnp.full(len(y), lax.axis_index(self.axes)))
            block = functools.partial(_cut_dense, block, dense)
        places = np.array(self.order).reshape(self.sizes)
        for dimension in reversed(range(places.ndim)):
            block = _Turn(self.axes, places, dimension, self.ways[dimension], block, join).pairs
        return block(x, y, rows, cols)

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)


def _cut_dense(
    block: Callable, dense: jax.Array, x, y, rows: Side, cols: Side
) -> tuple[Tree, Tree]:
    """`block` with the columns of the dense mask that belong to the device y comes from."""
    start = cols["home"][0] * len(y)
    keep = lax.dynamic_slice_in_dim(dense, start, len(y), 1)
    cols = {k: v for k, v in cols.items() if k != "home"}
    return block(x, y, dict(rows, keep=keep), cols)


@dataclasses.dataclass(frozen=True, eq=False)
class _Turn:
    """One turn of a ring.

    Attributes:
      axes, places: see `Ring`.
      dimension: of `places`, along which this ring turns.
      ways: 1 or 2.
      block: `(x, y, rows, cols) -> (row results, column results)`, which may be a turn of a faster
        ring.
      join: joins results.
    """

    axes: tuple[str, ...]
    places: np.ndarray
    dimension: int
    ways: int
    block: Callable
    join: Callable

    def pairs(self, x, y, rows: Side, cols: Side) -> tuple[Tree, Tree]:
        n = self.places.shape[self.dimension]
        directions = (1, -1)[: self.ways]
        rounds = (n - 1) // self.ways
        # Both ways round an even ring, the opposite block comes last, from the left.
        has_opposite = rounds * self.ways < n - 1
        visitor, unbundle = bundle((y, cols))

        def meet(row, visitor, arriving=()):
            """`row` joined with the results of a block, those of its columns, and what arrives
            while they are computed."""
            # One block after the other: a compiler that began several would hold all their results.
            row, visitor = lax.optimization_barrier((row, visitor))
            y, cols = unbundle(visitor)
            found = self.block(x, y, rows, cols)
            # Arrived before the results are joined: the copies are to hide behind the block itself.
            (found, col), arriving = lax.optimization_barrier((found, arriving))
            return self.join(row, found), col, arriving

        def onward(i, side, direction, is_last):
            """What is known about the columns of the present block, which follows it, and the next
            block."""
            known, visitor = side
            # At first nothing is known; what stands there has only its shape.
            if not (isinstance(i, int) and i == 0):
                known = self._send(known, direction)
            needed = not is_last or (has_opposite and direction == 1)
            return known, self._send(visitor, direction) if needed else visitor

        def one_round(i, state, is_last):
            row, sides = state
            arriving = tuple(onward(i, s, d, is_last) for s, d in zip(sides, directions))
            cols = []
            for _, visitor in sides[:-1]:
                row, col, _ = meet(row, visitor)
                cols.append(col)
            row, col, arriving = meet(row, sides[-1][1], arriving)
            cols.append(col)
            known = [self._known(i == 0, side[0], col) for side, col in zip(arriving, cols)]
            return row, tuple((k, side[1]) for k, side in zip(known, arriving))

        first = [self._send(visitor, d) if rounds or d == 1 else visitor for d in directions]
        found = self.block(x, y, rows, cols)
        (row, col), first = lax.optimization_barrier((found, first))
        state = row, tuple((col, visitor) for visitor in first)
        if rounds * self.ways <= UNROLLED:
            for i in range(rounds):
                state = one_round(i, state, is_last=i == rounds - 1)
        else:
            state = lax.fori_loop(0, rounds, functools.partial(one_round, is_last=False), state)
        row, sides = state
        if rounds:
            for (known, _), direction in zip(sides, directions):
                col = self.join(col, self._send(known, -direction * rounds))
        if has_opposite:
            row, col_last, _ = meet(row, sides[0][1])
            col = self.join(col, self._send(col_last, -(rounds + 1)))
        return row, col

    def _known(self, is_first: bool | jax.Array, before: Tree, new: Tree) -> Tree:
        if is_first is True:
            return new
        joined = self.join(before, new)
        return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), new, joined)

    def _send(self, tree: Tree, distance: int) -> Tree:
        """`tree` of the device that stands `distance` before this one."""
        target = np.roll(self.places, -distance, self.dimension)
        pairs = list(zip(self.places.flat, target.flat))
        return bundled(lambda a, _: lax.ppermute(a, self.axes, pairs), tree)
