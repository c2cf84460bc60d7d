"""All pairs of a sharded batch, inside shard_map: a grid of devices, each with one block of pairs.

Of a ring, or where all columns are gathered, every device sees n - 1 blocks of others. Here the n
devices stand in a grid of R x C, as square as they permit, and a device sees R - 1 of one side and
C - 1 of the other (the two-dimensional products of van de Geijn and Watts 1997, SUMMA).

                 y0 y2 y4 y6   y1 y3 y5 y7      8 devices of b rows in a grid of R = 4 by C = 2: each
    x0 x1        device 0      device 1         gathers the rows x of its row of the grid, and the
    x2 x3        device 2      device 3         columns y of its column of the grid. A pair is met
    x4 x5        device 4      device 5         where the row of its x crosses the column of its y,
    x6 x7        device 6      device 7         once.

    gather      x over a row of the grid, C b rows of width D, and y over a column, R b rows
    compute     one block of C b x R b pairs, by the tiles of `Blocks`
    return      what is known of these rows, over the row of the grid, to where each is at home;
                what is known of the columns, over the column

A device sends and receives (R + C - 2) b D elements to gather, and as many of the gradients, which
return as partial sums in float32; the gathered blocks of the forward pass are those of the backward
pass. That grows with sqrt(n) where the ring's 3 (n - 1) b D grows with n; so does the memory,
(R + C) b D elements and their gradients. Nothing hides it.

Between slices (or hosts) a grid's row lies within one of them, and its column goes through all: y
is gathered over slices first, from the devices that stand alike, so that every block crosses once.

A prime number of devices is a grid of one column, or one row: every device then gathers all of a
side, which costs what `ring.Gather` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive import routes, tiles
from jaxvl.kernels.contrastive.bundle import bundled, fold
from jaxvl.kernels.contrastive.ring import split_dense
from jaxvl.kernels.contrastive.tiles import Side

# Dimensions of `Grid.sizes`.
ROW = (2,)
COLUMN = (0, 1)


@dataclasses.dataclass(frozen=True)
class Grid:
    """See the top of this file.

    Attributes:
      axes: manual mesh axes over which rows and columns are sharded, taken as one in row-major
        order.
      sizes: (slices, grid rows of a slice, devices of a grid row).
      order: indices into the axes, as an array of these sizes in row-major order.
      joined: whether vectors travel as one, by their bits. Automatic differentiation does not go
        through that.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, int, int]
    order: tuple[int, ...]
    joined: bool = True
    partial: ClassVar[bool] = True
    at_once: ClassVar[bool] = True

    @classmethod
    def over(cls, axes: tuple[str, ...], joined: bool = True) -> Grid:
        """The grid over mesh axes, as their devices are wired."""
        places = routes.grid(axes)
        return cls(axes, places.shape, tuple(places.flat), joined)

    def pairs(
        self, block: Callable, join: Callable, x, y, rows: Side, cols: Side
    ) -> tuple[Tree, Tree]:
        rows, dense = split_dense(rows)
        x, rows = self._gather((x, rows), ROW)
        y, cols = self._gather((y, cols), COLUMN)
        if dense is not None:
            rows = dict(rows, keep=self._of_block(dense))
        row, col = block(x, y, rows, cols)
        return self._return(row, join, ROW), self._return(col, join, COLUMN)

    def total(self, value: jax.Array) -> jax.Array:
        return lax.psum(value, self.axes)

    @property
    def _places(self) -> np.ndarray:
        return np.array(self.order).reshape(self.sizes)

    def _groups(self, dimension: int) -> list[list[int]]:
        """Devices that differ along a dimension of the grid alone."""
        size = self.sizes[dimension]
        return np.moveaxis(self._places, dimension, -1).reshape(-1, size).tolist()

    def _spread(self, dimensions: Sequence[int]) -> list[int]:
        """Those along which there is more than one device."""
        return [d for d in dimensions if self.sizes[d] > 1]

    def _gather(self, tree: Tree, dimensions: Sequence[int]) -> Tree:
        """Leaves [b, …] of the devices along these dimensions as [k b, …]; the last dimension
        varies slowest."""

        def gather(a: jax.Array, axis: int) -> jax.Array:
            for dimension in self._spread(dimensions):
                groups = self._groups(dimension)
                a = lax.all_gather(a, self.axes, axis=axis, axis_index_groups=groups, tiled=True)
            return a

        return self._moved(gather, tree)

    def _return(self, tree: Tree, join: Callable, dimensions: Sequence[int]) -> Tree:
        """Results of rows that were gathered along these dimensions, [k b, …], joined with those of
        the other devices, at home: [b, …]."""
        for dimension in reversed(self._spread(dimensions)):
            if join is tiles.add:
                tree = jax.tree.map(lambda a, d=dimension: self._sum(a, d), tree)
            else:
                tree = fold(join, self._exchange(tree, dimension))
        return tree

    def _sum(self, a: jax.Array, dimension: int) -> jax.Array:
        groups = self._groups(dimension)
        return lax.psum_scatter(a, self.axes, axis_index_groups=groups, tiled=True)

    def _exchange(self, tree: Tree, dimension: int) -> Tree:
        """Leaves [k b, …] with a part for each of the k devices along a dimension, as [k, b, …]
        with the parts that these have for this device."""
        k = self.sizes[dimension]

        groups = self._groups(dimension)

        def exchange(a: jax.Array, axis: int) -> jax.Array:
            parts = a.reshape(*a.shape[:axis], k, -1, *a.shape[axis + 1 :])
            return lax.all_to_all(
                parts, self.axes, axis, axis, axis_index_groups=groups, tiled=True
            )

        return self._moved(exchange, tree)

    def _moved(self, move: Callable[[jax.Array, int], jax.Array], tree: Tree) -> Tree:
        """What `move(array, axis of its rows)` makes of a tree's arrays."""
        return bundled(move, tree) if self.joined else jax.tree.map(lambda a: move(a, 0), tree)

    def _of_block(self, dense: jax.Array) -> jax.Array:
        """Of a dense mask [b, N] of this device's rows, the [C b, R b'] of its block."""
        b, n = dense.shape
        devices = len(self.order)
        # The columns that each device of the grid's row gathers, in the order in which it does.
        wanted = self._places.transpose(2, 1, 0).reshape(self.sizes[2], -1)
        by_device = dense.reshape(b, devices, n // devices)[:, wanted]
        parts = jnp.moveaxis(by_device.reshape(b, self.sizes[2], -1), 1, 0)
        for dimension in self._spread(ROW):
            groups = self._groups(dimension)
            parts = lax.all_to_all(parts, self.axes, 0, 0, axis_index_groups=groups, tiled=True)
        return parts.reshape(-1, parts.shape[-1])
