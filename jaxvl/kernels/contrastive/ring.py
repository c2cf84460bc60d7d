"""All pairs of a sharded batch, inside shard_map: an all-gather, or a ring.

An all-gather for small batches, a ring for large ones.

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

Over several mesh axes, the slowest (between hosts or slices) first: the ring of the later axes
turns once for every block that the first one brings, which brings the next meanwhile.

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
from jax import lax
from jax.sharding import AxisType

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive.bundle import bundle
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


def _split_dense(rows: Side) -> tuple[Side, jax.Array | None]:
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

        parts = jax.tree.map(home, col)
        if not jax.tree.leaves(parts):
            return row, col
        first = jax.tree.map(lambda a: a[0], parts)
        rest = jax.tree.map(lambda a: a[1:], parts)
        return row, lax.scan(lambda state, part: (join(state, part), None), first, rest)[0]

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)


# Up to this many rounds are written out one after the other, without a loop: a loop's last round
# sends blocks on that nobody needs.
UNROLLED = 2


@dataclasses.dataclass(frozen=True)
class Ring:
    """x stays, blocks of y go round both ways (see the top of this file).

    Attributes:
      axes: manual mesh axes over which rows and columns are sharded, in row-major order, the
        slowest first; each is a ring.
    """

    axes: tuple[str, ...]
    partial: ClassVar[bool] = True

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]:
        for axis in reversed(self.axes):
            if axis_size((axis,)) > 1:
                block = _Turn(axis, axis_size((axis,)), block, join).pairs
        return block(x, y, rows, cols)

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One turn of the ring along one mesh axis.

    Attributes:
      axis: name of the axis.
      n: devices along it.
      block: `(x, y, rows, cols) -> (row results, column results)`, which may be a turn along a
        faster axis.
      join: joins results.
    """

    axis: str
    n: int
    block: Callable
    join: Callable

    def pairs(self, x, y, rows: Side, cols: Side) -> tuple[Tree, Tree]:
        rounds = (self.n - 1) // 2
        visitor, unbundle = bundle((y, cols))

        def meet(distance, visitor):
            return self._meet(distance, x, rows, *unbundle(visitor))

        def one_round(i, state, is_last):
            row, known, (left, right) = state
            is_first = i == 1
            # What is known about the columns follows them. At first that is nothing: what stands
            # there has only its shape.
            known = (
                known if is_first is True else (self._send(known[0], 1), self._send(known[1], -1))
            )
            # An even ring's opposite block comes last, from the left.
            ahead_left = left if is_last and self.n % 2 else self._send(left, 1)
            ahead_right = right if is_last else self._send(right, -1)
            row_left, col_left = meet(i, left)
            row_right, col_right = meet(-i, right)
            known = (
                self._known(is_first, known[0], col_left),
                self._known(is_first, known[1], col_right),
            )
            row = self.join(self.join(row, row_left), row_right)
            return row, known, (ahead_left, ahead_right)

        left = self._send(visitor, 1)
        right = self._send(visitor, -1) if rounds else visitor
        row, col = meet(0, visitor)
        state = row, (col, col), (left, right)
        if rounds <= UNROLLED:
            for i in range(1, rounds + 1):
                state = one_round(i, state, is_last=i == rounds)
        else:
            state = lax.fori_loop(1, rounds + 1, functools.partial(one_round, is_last=False), state)
        row, known, (left, _) = state
        if rounds:
            for distance, results in zip((-rounds, rounds), known):
                col = self.join(col, self._send(results, distance))
        if self.n % 2 == 0:
            row_last, col_last = meet(self.n // 2, left)
            row = self.join(row, row_last)
            col = self.join(col, self._send(col_last, -(self.n // 2)))
        return row, col

    def _meet(self, distance, x, rows: Side, y, cols: Side) -> tuple[Tree, Tree]:
        """The rows of this device with the block of the device that lies `distance` before it."""
        rows, dense = _split_dense(rows)
        if dense is not None:
            width = dense.shape[1] // self.n
            start = (lax.axis_index(self.axis) - distance) % self.n * width
            rows = dict(rows, keep=lax.dynamic_slice_in_dim(dense, start, width, 1))
        return self.block(x, y, rows, cols)

    def _known(self, is_first: bool | jax.Array, before: Tree, new: Tree) -> Tree:
        if is_first is True:
            return new
        joined = self.join(before, new)
        return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), new, joined)

    def _send(self, tree: Tree, distance: int) -> Tree:
        """`tree` of the device that lies `distance` before this one."""
        to = [(i, (i + distance) % self.n) for i in range(self.n)]
        arrays, unbundle = bundle(tree)
        return unbundle([lax.ppermute(a, self.axis, to) for a in arrays])
