"""All pairs of a sharded batch, inside shard_map: an all-gather, or a ring.

An all-gather for small batches, a ring for large ones.

    device 0     device 1     device 2     device 3            each holds b = B / n rows of x and of
                                           y
    x0 | y0      x1 | y1      x2 | y2      x3 | y3     hop 0   x stays; the block of y, the vectors
                                                       of its columns and
    x0 | y3      x1 | y0      x2 | y1      x3 | y2     hop 1   what is known about them so far
                                                       travel to the next device
    x0 | y2      x1 | y3      x2 | y0      x3 | y1     hop 2   while the present block is computed
    x0 | y1      x1 | y2      x2 | y3      x3 | y0     hop 3
    x0 | y0      ...                                           after n hops the column results are
                 home again

Both give the numbers of one device. The ring keeps O(b D) bytes per device whatever n is; the
all-gather keeps O(B D), which for small B costs less than n rounds of latency.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
from jax import lax
from jax.sharding import AxisType

from jaxvl.aliases import Tree
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


@dataclasses.dataclass(frozen=True)
class Ring:
    """x stays, blocks of y go round (see the top of this file).

    The next block is sent before the present one is computed, so the copy hides behind the
    arithmetic; only the results of the columns, which the computation changes, wait for it.

    Attributes:
      axes: manual mesh axes over which rows and columns are sharded, taken as one ring in row-major
        order.
    """

    axes: tuple[str, ...]
    partial: ClassVar[bool] = True

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]:
        n = axis_size(self.axes)
        rows, dense = _split_dense(rows)
        index = lax.axis_index(self.axes)
        send = functools.partial(
            _send, axes=self.axes, permutation=[(i, (i + 1) % n) for i in range(n)]
        )

        def compute(hop, y, cols):
            if dense is None:
                return block(x, y, rows, cols)
            start = ((index - hop) % n) * y.shape[0]
            return block(
                x, y, dict(rows, keep=lax.dynamic_slice_in_dim(dense, start, y.shape[0], 1)), cols
            )

        # Hop 0 meets the own block; the loop's carry starts from its results.
        visitor = send((y, cols))
        row, col = compute(0, y, cols)

        def hop(i, state):
            row, col, (y, cols) = state
            col = send(col)
            ahead = send((y, cols))
            row_i, col_i = compute(i, y, cols)
            return join(row, row_i), join(col, col_i), ahead

        row, col, _ = lax.fori_loop(1, n, hop, (row, col, visitor))
        return row, send(col)

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)


def _send(tree: Tree, axes: tuple[str, ...], permutation: list[tuple[int, int]]) -> Tree:
    return jax.tree.map(lambda a: lax.ppermute(a, axes, permutation), tree)
