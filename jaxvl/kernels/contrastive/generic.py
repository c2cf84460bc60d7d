"""Losses of any score of pairs, streamed: never more than one block of the `[M, N]` scores is held.

The fused core (`contrastive_loss`) is for dot products. Here a score is any function of a block of
rows and a block of columns, over pytrees (tokens with their masks, several vectors):

    score(u_block, v_block) -> [m, n]        what rows and columns compare
                            -> ([m, n], [m, n])   one for the rows, one for the columns (FILIP)

A reduction (`reductions`) makes one number of each row and of each column. It is written as sums
over pairs, which add up over blocks and over devices, so that nothing but the inputs is kept for
the backward pass: every block of scores is computed again there (`jax.checkpoint`), and gradients,
also of what `score` closes over, are those of automatic differentiation.

A softmax first finds the largest score of each row, without a gradient, and then takes its sums:
scores are computed twice in the forward and once in the backward pass. `contrastive_loss` computes
them once and once, so it is the faster one for dot products.

On a mesh of n devices each scores a block of a grid (`grid.Grid`), for which it gathers sqrt(n)
devices' rows of `u` and of `v`; or, where that is less, its own rows of `u` and all of `v`
(`ring.Gather`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive import collectives, dispatch, routes, tiles
from jaxvl.kernels.contrastive.chunked import even
from jaxvl.kernels.contrastive.core import Exchange, Local
from jaxvl.kernels.contrastive.grid import Grid
from jaxvl.kernels.contrastive.ring import Gather, axis_size, batch_axes
from jaxvl.kernels.contrastive.targets import Form, Targets, lower
from jaxvl.kernels.contrastive.tiles import Side

Scores = jax.Array | tuple[jax.Array, jax.Array]
Score = Callable[[Tree, Tree], Scores]  # of rows and columns: pytrees whose leaves have one length
DIRECTIONS = {"mean": (0.5, 0.5), "sum": (1.0, 1.0), "rows": (1.0, 0.0), "columns": (0.0, 1.0)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reduced:
    """What a reduction gives.

    Attributes:
      rows: Float[M], of each row over the columns.
      cols: Float[N], of each column over the rows.
      row_count, col_count: number of rows and columns that have a loss.
      row_index: Int[M], the column that was chosen for each row, -1 where there is none; None where
        the reduction chooses nothing.
      col_index: Int[N], the row that was chosen for each column.
    """

    rows: jax.Array
    cols: jax.Array
    row_count: jax.Array
    col_count: jax.Array
    row_index: jax.Array | None = None
    col_index: jax.Array | None = None

    def loss(self, directions: Literal["mean", "sum", "rows", "columns"] = "mean") -> jax.Array:
        """Mean or sum of the means over the rows and over the columns, or one of these: Float[]."""
        if directions not in DIRECTIONS:
            raise ValueError(
                f"directions: {directions!r} is not valid; must be one of {tuple(DIRECTIONS)}"
            )
        row_weight, col_weight = DIRECTIONS[directions]
        total = jnp.zeros((), self.rows.dtype)
        if row_weight:
            total += row_weight * self.rows.sum() / jnp.maximum(self.row_count, 1)
        if col_weight:
            total += col_weight * self.cols.sum() / jnp.maximum(self.col_count, 1)
        return total


class Reduction(Protocol):
    """Makes one number of each row and column; see `reductions`.

    Attributes:
      targets: which pairs are positive, and which compete.
    """

    targets: Targets

    def check(self, form: Form) -> None:
        """Raises ValueError for targets that this reduction cannot have."""

    def __call__(self, pairs: Pairs, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        """`value` [M] and `value` [N], and where it chooses something `index`, of the vectors of
        the lowered targets."""


def streamed_scores(
    score: Score,
    u: Tree,
    v: Tree,
    reduce: Reduction,
    block: int | tuple[int, int] = 256,
) -> Reduced:
    """One number of each row and column of the scores of all pairs of `u` and `v`.

    Under a mesh (`jax.set_mesh`) the rows of `u` and `v` are sharded over its `data` and `fsdp`
    axes, and the result is that of one device.

    Args:
      score: see the top of this file. It is called on blocks, whose rows it must treat
        independently of each other, and must be finite for every row, also for those that are
        masked. Arrays that it needs (a temperature) get their gradients; on a mesh they must be its
        leaves: those of a registered dataclass, as in `scores`, or of a
        `jax.tree_util.Partial(function, *arrays)`.
      u: pytree of arrays [M, …].
      v: pytree of arrays [N, …].
      reduce: one of `reductions`.
      block: rows and columns of the largest block. A score over tokens holds [rows, columns, T, T']
        numbers, so its blocks have to be small.

    Returns:
      Numbers in float32 (float64 where the scores are float64).

    Raises:
      ValueError: an argument that does not fit; targets that are as large as the scores
        (`PairMask(keep=…)`); inside `shard_map`; on a mesh, a score that closes over traced arrays.
    """
    m = _length(u, "u")
    n = _length(v, "v")
    sizes = _sizes(block)
    acc = _check_score(score, u, v)
    terms = lower(reduce.targets, m, n, "softmax", acc)
    if terms.form.dense:
        raise ValueError(
            "targets: PairMask(keep=…) is as large as the scores and does not stream; use groups "
            "or valid rows, or let the score itself subtract from pairs that must not compete"
        )
    reduce.check(terms.form)
    if any(t == AxisType.Manual for t in jax.sharding.get_abstract_mesh().axis_types):
        raise ValueError(
            "streamed_scores: is not for the inside of shard_map; call it outside, under "
            "jax.set_mesh"
        )
    rows = dict(terms.rows, index=jnp.arange(m, dtype=jnp.int32))
    cols = dict(terms.cols, index=jnp.arange(n, dtype=jnp.int32))
    axes, _ = batch_axes(None)
    if axis_size(axes) == 1:
        row, col = reduce(Pairs(score, u, v, sizes), rows, cols, terms.form)
    else:
        _check_closure(score, u, v)
        row, col = _over_mesh(score, u, v, reduce, sizes, (rows, cols, terms.form), axes)
    return Reduced(
        row["value"],
        col["value"],
        terms.row_count,
        terms.col_count,
        row.get("index"),
        col.get("index"),
    )


def _length(tree: Tree, name: str) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{name}: leaves of lengths {sorted(lengths)} do not fit; must be arrays of one length "
            f">= 1"
        )
    return lengths.pop()[0]


def _sizes(block: int | tuple[int, int]) -> tuple[int, int]:
    sizes = block if isinstance(block, tuple) else (block, block)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"block: {block!r} is not valid; must be a number >= 1, or two of them")
    return sizes


def _check_score(score: Score, u: Tree, v: Tree) -> jnp.dtype:
    """The dtype of sums of these scores. Raises ValueError for what is no score."""

    found = jax.eval_shape(lambda u, v: both(score(u, v)), _few(u, 2), _few(v, 3))
    for scores in found:
        if scores.shape != (2, 3) or not jnp.issubdtype(scores.dtype, jnp.floating):
            raise ValueError(
                f"score: gives {scores.dtype}{scores.shape} for 2 rows and 3 columns; must be "
                f"floating point numbers (2, 3)"
            )
    return tiles.accumulator(jnp.promote_types(found[0].dtype, found[1].dtype))


def _few(tree: Tree, rows: int) -> Tree:
    """Shapes of so many rows."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *jnp.shape(a)[1:]), jnp.result_type(a)), tree
    )


def _check_closure(score: Score, u: Tree, v: Tree) -> None:
    """Raises ValueError for a score that closes over traced arrays that are no leaves of it."""
    arrays, rebuild = _split(score)

    def call(arrays, u, v):
        return rebuild(arrays)(u, v)

    closed = jax.make_jaxpr(call)(arrays, _few(u, 2), _few(v, 3))
    if any(isinstance(x, jax.core.Tracer) for x in closed.consts):
        raise ValueError(
            "score: closes over traced arrays, which a mesh cannot share out; must be a registered "
            "dataclass with them as leaves, or jax.tree_util.Partial(function, *arrays)"
        )


def both(scores: Scores) -> tuple[jax.Array, jax.Array]:
    """The rows' scores and the columns' scores, in the dtype of sums."""
    pair = scores if isinstance(scores, tuple) else (scores, scores)
    return tuple(s.astype(tiles.accumulator(s.dtype)) for s in pair)


# --------------------------------------------------------------------------------------------------
# All pairs

Tile = Callable[[tuple[jax.Array, jax.Array], Side, Side, Form], tuple[Side, Side]]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The scores of all pairs, as a reduction sees them, on one device or inside `shard_map`.

    Attributes:
      score, u, v: see `streamed_scores`; this device's rows and columns.
      sizes: rows and columns of the largest block.
      axes: mesh axes that shard the rows.
    """

    score: Score
    u: Tree
    v: Tree
    sizes: tuple[int, int]
    axes: tuple[str, ...] = ()

    def sums(self, tile: Tile, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        """Sums over all pairs, with gradients.

        `tile(scores, rows, cols, form)` gives the sums of one block: by name [m, 1] of its rows and
        [1, n] of its columns. `rows` and `cols` come to it as [m, 1] and [1, n].
        """

        return self._all(tile, tiles.add, 0.0, rows, cols, form)

    def largest(self, tile: Tile, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        """Maxima over all pairs, as `sums`, without gradients."""

        def join(a: Side, b: Side) -> Side:
            return jax.tree.map(jnp.maximum, a, b)

        return self._fixed()._all(tile, join, None, rows, cols, form)

    def best(self, tile: Tile, rows: Side, cols: Side, form: Form) -> tuple[Side, Side]:
        """The column of the largest score of each row, int32 [M], and the row of the largest score
        of each column, int32 [N]; -1 where there is none. Of equal ones the first.

        `tile` gives the scores that take part, [m, n] and [m, n], others `tiles.lowest`.
        """

        def chosen(scores, rows, cols, form):
            of_rows, of_cols = tile(scores, rows, cols, form)
            return _top(of_rows, 1, cols["index"]), _top(of_cols, 0, rows["index"])

        def join(a: Side, b: Side) -> Side:
            # Blocks meet in any order.
            before = (b["index"] < a["index"]) & (b["index"] >= 0) | (a["index"] < 0)
            better = (b["top"] > a["top"]) | (b["top"] == a["top"]) & before
            return {name: jnp.where(better, b[name], a[name]) for name in a}

        row, col = self._fixed()._all(chosen, join, None, rows, cols, form)
        return row["index"], col["index"]

    def own(self) -> tuple[jax.Array, jax.Array]:
        """The scores of row i with column i, [M] and [M], with gradients; M = N."""
        return self._aligned(self.u, self.v)

    def at(self, row_index: jax.Array, col_index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The scores of each row with column `row_index`, [M], and of each column with row
        `col_index`, [N], with gradients; indices are those of the whole batch."""
        of_rows = self._aligned(self.u, _take(self._whole(self.v), row_index))[0]
        of_cols = self._aligned(_take(self._whole(self.u), col_index), self.v)[1]
        return of_rows, of_cols

    def _fixed(self) -> Pairs:
        u, v = lax.stop_gradient((self.u, self.v))
        return dataclasses.replace(
            self, u=u, v=v, score=lambda u, v: lax.stop_gradient(self.score(u, v))
        )

    def _whole(self, tree: Tree) -> Tree:
        return lax.all_gather(tree, self.axes, tiled=True) if self.axes else tree

    def _aligned(self, u: Tree, v: Tree) -> tuple[jax.Array, jax.Array]:
        """Scores of the rows of `u` with the rows of `v` in the same place."""

        @jax.checkpoint
        def one(pair: tuple[Tree, Tree]) -> tuple[jax.Array, jax.Array]:
            scores = both(self.score(*jax.tree.map(lambda a: a[None], pair)))
            return scores[0][0, 0], scores[1][0, 0]

        return lax.map(one, (u, v), batch_size=max(self.sizes))

    def _all(
        self,
        tile: Tile,
        join: Callable[[Side, Side], Side],
        fill: float | None,
        rows: Side,
        cols: Side,
        form: Form,
    ) -> tuple[Side, Side]:
        def block(u, v, rows, cols):
            return self._grid(tile, join, fill, (u, rows), (v, cols), form)

        return self._exchange().pairs(block, join, self.u, self.v, rows, cols)

    def _exchange(self) -> Exchange:
        """What the run says, or moves fewer bytes; there is no ring of what is differentiated by
        itself."""
        if not self.axes:
            return Local()
        slices, column, row = routes.grid(self.axes).shape
        u, v = (sum(a.nbytes for a in jax.tree.leaves(tree)) for tree in (self.u, self.v))
        gathered = (axis_size(self.axes) - 1) * v
        in_a_grid = (row - 1) * u + (slices * column - 1) * v
        said = collectives.chosen()
        if said == "grid" or (said != "gather" and in_a_grid < gathered):
            return Grid.over(self.axes, joined=False)
        return Gather(self.axes)

    def _grid(self, tile, join, fill, by_row, by_col, form: Form) -> tuple[Side, Side]:
        """`tile` over the blocks of rows and columns: a scan over rows, inside it one over columns;
        states begin at `fill` (None: the lowest number)."""
        m = len(by_row[1]["index"])
        n = len(by_col[1]["index"])
        bm, bn = (even(length, size) for length, size in zip((m, n), self.sizes))
        ni = -(-m // bm)
        nj = -(-n // bn)
        if (ni * bm, nj * bn) != (m, n):
            by_row = (by_row[0], dispatch.with_ok(by_row[1], m))
            by_col = (by_col[0], dispatch.with_ok(by_col[1], n))
            form = dataclasses.replace(form, valid=True)
        by_row = _cut(by_row, ni, bm)
        by_col = _cut(by_col, nj, bn)

        @jax.checkpoint
        def of_block(u, v, rows, cols):
            scores = both(self.score(u, v))
            row, col = tile(scores, tiles.as_rows(rows), tiles.as_cols(cols), form)
            return {k: x[:, 0] for k, x in row.items()}, {k: x[0] for k, x in col.items()}

        first = jax.tree.map(lambda a: a[0], (by_row, by_col))
        shapes = jax.eval_shape(lambda r, c: of_block(r[0], c[0], r[1], c[1]), *first)
        like = by_row[1]["index"]
        row_start, col_start = (_start(side, fill, like) for side in shapes)
        col_start = jax.tree.map(lambda a: jnp.broadcast_to(a, (nj, *a.shape)), col_start)

        def row_step(col_state, row):
            def col_step(row_state, xs):
                (v, cols), state = xs
                row_part, col_part = of_block(row[0], v, row[1], cols)
                return join(row_state, row_part), join(state, col_part)

            row_state, col_state = lax.scan(col_step, row_start, (by_col, col_state))
            return col_state, row_state

        col, row = lax.scan(row_step, col_start, by_row)
        return (
            jax.tree.map(lambda a: a.reshape(-1)[:m], row),
            jax.tree.map(lambda a: a.reshape(-1)[:n], col),
        )


def _top(scores: jax.Array, axis: int, index: jax.Array) -> Side:
    """The largest score along `axis`, and the index of where it stands: the lowest of equal ones,
    -1 where there is none."""
    top = jnp.max(scores, axis, keepdims=True)
    last = jnp.iinfo(index.dtype).max
    first = jnp.min(jnp.where(scores == top, index, last), axis, keepdims=True)
    return dict(top=top, index=jnp.where(top > tiles.lowest(scores.dtype), first, -1))


def _take(tree: Tree, index: jax.Array) -> Tree:
    return jax.tree.map(lambda a: jnp.take(a, jnp.maximum(index, 0), axis=0), tree)


def _cut(by: tuple[Tree, Side], parts: int, size: int) -> tuple[Tree, Side]:
    """Leaves [n, …] as [parts, size, …]. What is scored is padded with its last row, which every
    score can take; the vectors of the targets with zeros, so that nothing there is valid."""
    tree, side = by

    def cut(a: jax.Array, mode: str) -> jax.Array:
        pad = (0, parts * size - a.shape[0])
        padded = jnp.pad(a, (pad, *((0, 0),) * (a.ndim - 1)), mode=mode) if pad[1] else a
        return padded.reshape(parts, size, *a.shape[1:])

    return (
        jax.tree.map(lambda a: cut(jnp.asarray(a), "edge"), tree),
        jax.tree.map(lambda a: cut(a, "constant"), side),
    )


def _start(shapes: Mapping[str, jax.ShapeDtypeStruct], fill: float | None, like: jax.Array) -> Side:
    """The state of no pairs; varies over the same manual mesh axes as `like`."""

    def full(shape: jax.ShapeDtypeStruct) -> jax.Array:
        value = fill
        if fill is None:
            is_integer = jnp.issubdtype(shape.dtype, jnp.integer)
            value = -1 if is_integer else tiles.lowest(shape.dtype)
        nothing = like[(0,) * like.ndim].astype(shape.dtype)
        one = jnp.where(False, nothing, jnp.asarray(value, shape.dtype))
        return jnp.broadcast_to(one, shape.shape)

    return {name: full(shape) for name, shape in shapes.items()}


def _over_mesh(
    score: Score,
    u: Tree,
    v: Tree,
    reduce: Reduction,
    sizes: tuple[int, int],
    terms: tuple[Side, Side, Form],
    axes: tuple[str, ...],
) -> tuple[Side, Side]:
    """The reduction under shard_map; lengths that the mesh does not divide are padded."""
    rows, cols, form = terms
    m = len(rows["index"])
    n = len(cols["index"])
    shards = axis_size(axes)
    pad = (-m % shards, -n % shards)
    if pad != (0, 0):
        rows = dispatch.pad(dispatch.with_ok(rows, m), pad[0])
        cols = dispatch.pad(dispatch.with_ok(cols, n), pad[1])
        form = dataclasses.replace(form, valid=True)
        u, v = (_repeat_last(tree, more) for tree, more in zip((u, v), pad))
    batch = PartitionSpec(axes)
    mesh = jax.sharding.get_abstract_mesh()
    given = (u, v, rows, cols)
    arrays, rebuild = _split(score)
    if any(t == AxisType.Explicit for t in mesh.axis_types):
        given = jax.tree.map(lambda x: jax.sharding.reshard(x, batch), given)
        arrays = [jax.sharding.reshard(x, PartitionSpec()) for x in arrays]

    def local(given, arrays):
        u, v, rows, cols = given
        # As values that may differ between devices, so that gradients are summed over them once.
        score = rebuild([lax.pcast(x, axes, to="varying") for x in arrays])
        return reduce(Pairs(score, u, v, sizes, axes), rows, cols, form)

    specs = (batch, PartitionSpec())
    row, col = jax.shard_map(local, in_specs=specs, out_specs=batch)(given, arrays)
    return (
        jax.tree.map(lambda a: a[:m], row),
        jax.tree.map(lambda a: a[:n], col),
    )


def _split(score: Score) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Score]]:
    """The arrays among the leaves of a score, and what makes the score of such arrays."""
    leaves, tree = jax.tree.flatten(score)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]

    def rebuild(arrays: list[jax.Array]) -> Score:
        found = dict(zip(places, arrays))
        return tree.unflatten([found.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [jnp.asarray(leaves[i]) for i in places], rebuild


def _repeat_last(tree: Tree, more: int) -> Tree:
    return jax.tree.map(
        lambda a: jnp.pad(a, ((0, more), *((0, 0),) * (jnp.ndim(a) - 1)), mode="edge"), tree
    )
