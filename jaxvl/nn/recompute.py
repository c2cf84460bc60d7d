"""A layer that its backward pass computes again a part of the rows at a time: what it needs then is
a part of that too, with the same FLOP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from jaxvl.aliases import Tree
from jaxvl.sharding.copies import all_gathered, reduce_scattered
from jaxvl.sharding.mesh import BATCH_AXES, batch_shards
from jaxvl.sharding.rules import auto_mesh, names_of, spec

CHUNKS = 4  # of a device's rows
# How a program names what is computed here.
RECOMPUTED = "recomputed_in_chunks"

Arrays = list[jax.Array]
Layer = Callable[[Tree, Tree], Tree]  # (parameters, arrays [B, ...]) -> [B, ...]
# (parameters, arrays of rows, gradient) -> gradients of the parameters, of the rows' floats
Slopes = Callable[[Arrays, Arrays, Tree], tuple[Arrays, Arrays]]


def in_chunks(layer: Layer, chunks: int = CHUNKS) -> Layer:
    """`layer`, whose gradient keeps its arguments alone and has a part of the rows at a time.

    The gradient of the parameters is summed over the parts in float32, and over devices once. Of
    rows that `chunks` does not divide on each device, and on a mesh that has other axes than those
    of the batch, all are computed at once.

    Args:
      layer: of rows that are independent of each other; it draws nothing. Parameters are arrays, or
        `nnx.Variable` of a stack whose logical axes begin with that of the layers.
    """

    @jax.custom_vjp
    def run(params: Tree, rows: Tree) -> Tree:
        return layer(whole_floats(params), rows)

    def forward(params: Tree, rows: Tree) -> tuple[Tree, tuple[Tree, Tree]]:
        return run(params, rows), (params, rows)

    def backward(saved: tuple[Tree, Tree], dy: Tree) -> tuple[Tree, Tree]:
        params, rows = saved
        return _pulled(layer, chunks, whole_floats(params), rows, dy)

    run.defvjp(forward, backward)
    return run


def whole_floats(tree: Tree) -> Tree:
    """The same arrays. Those of float32 are read as such here: or a compiler that finds slices of a
    stack cast in a loop casts the stack before it, and keeps the copy. Under `fsdp` the copy is
    small, and what is gathered must be cast before; the arrays are left as they are."""
    mesh = auto_mesh()
    return tree if mesh is not None and mesh.shape["fsdp"] > 1 else _read_here(tree)


@jax.custom_vjp
def _read_here(tree: Tree) -> Tree:
    def read(x: jax.Array) -> jax.Array:
        if x.dtype != jnp.float32:
            return x
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), jnp.float32)

    return jax.tree.map(read, tree)


_read_here.defvjp(lambda tree: (_read_here(tree), None), lambda _, dtree: (dtree,))


def _pulled(layer: Layer, chunks: int, params: Tree, rows: Tree, dy: Tree) -> tuple[Tree, Tree]:
    """Gradients of the parameters and of the rows."""
    leaves, of_params = jax.tree.flatten(params)
    arrays, of_rows = jax.tree.flatten(rows)
    moving = [jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
    mesh = auto_mesh()
    shards = 1 if mesh is None else batch_shards(mesh)
    alone = mesh is None or mesh.size == shards
    n = chunks if alone and len(arrays[0]) % (shards * chunks) == 0 else 1

    def slopes(leaves: Arrays, arrays: Arrays, dy: Tree) -> tuple[Arrays, Arrays]:
        def of_moving(leaves: Arrays, moved: Arrays) -> Tree:
            given = iter(moved)
            every = [next(given) if m else a for a, m in zip(arrays, moving)]
            return layer(of_params.unflatten(leaves), of_rows.unflatten(every))

        moved = [a for a, m in zip(arrays, moving) if m]
        with jax.named_scope(RECOMPUTED):
            return jax.vjp(of_moving, leaves, moved)[1](dy)

    if mesh is None or n == 1:
        dleaves, dmoved = _summed(slopes, n, [], leaves, arrays, dy)
    else:
        where = _specs(params, leaves, mesh)
        split = PartitionSpec(BATCH_AXES)
        shared = jax.shard_map(
            functools.partial(_summed, slopes, n, where),
            in_specs=(where, split, split),
            out_specs=(where, split),
            check_vma=False,
        )
        dleaves, dmoved = shared(leaves, arrays, dy)
    given = iter(dmoved)
    drows = [
        next(given) if m else np.zeros(a.shape, jax.dtypes.float0) for a, m in zip(arrays, moving)
    ]
    return of_params.unflatten(dleaves), of_rows.unflatten(drows)


def _specs(params: Tree, leaves: Arrays, mesh: Mesh) -> list[PartitionSpec]:
    """How each leaf lies on the mesh."""

    def axes(variable: Any) -> tuple[str | None, ...] | None:
        return variable.get_metadata()["axes"][1:] if isinstance(variable, nnx.Variable) else None

    variables = jax.tree.leaves(params, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return [
        PartitionSpec() if (named := axes(v)) is None else spec(named, shape=a.shape, mesh=mesh)
        for v, a in zip(variables, leaves, strict=True)
    ]


def _summed(
    slopes: Slopes,
    n: int,
    where: Sequence[PartitionSpec],
    leaves: Arrays,
    arrays: Arrays,
    dy: Tree,
) -> tuple[Arrays, Arrays]:
    """The gradients on one device, whose parts of the parameters are `leaves`, lying as `where`
    says; on any number where that is empty."""
    [y, *_] = jax.tree.leaves(dy)
    # Matrices travel between devices in the dtype that the layer computes with.
    narrow = [y.dtype if leaf.ndim > 1 else leaf.dtype for leaf in leaves]
    whole = [leaf.astype(dtype) for leaf, dtype in zip(leaves, narrow)]
    whole = [_gathered(leaf, part) for leaf, part in zip(whole, where)] if where else whole

    def add(total: Arrays, part: tuple[Arrays, Tree]) -> tuple[Arrays, Arrays]:
        dleaves, dmoved = slopes(whole, *part)
        return [a + b.astype(jnp.float32) for a, b in zip(total, dleaves)], dmoved

    if n == 1:
        total, dmoved = slopes(whole, arrays, dy)
    else:
        parts = jax.tree.map(lambda a: a.reshape(n, -1, *a.shape[1:]), (arrays, dy))
        zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in whole]
        total, dmoved = jax.lax.scan(add, zeros, parts)
        dmoved = [a.reshape(-1, *a.shape[2:]) for a in dmoved]
    total = [slope.astype(dtype) for slope, dtype in zip(total, narrow)]
    total = [_scattered(slope, part) for slope, part in zip(total, where)] if where else total
    return [slope.astype(leaf.dtype) for slope, leaf in zip(total, leaves)], dmoved


def _gathered(part: jax.Array, where: PartitionSpec) -> jax.Array:
    return all_gathered(part, [_several(names) for names in where])


def _scattered(total: jax.Array, where: PartitionSpec) -> jax.Array:
    split = [_several(names) for names in where]
    used = {name for names in split for name in names}
    others = tuple(name for name in _several(BATCH_AXES) if name not in used)
    return reduce_scattered(total, split, others)


def _several(part: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes of a dimension that have more than one device. Collectives over one end the
    process of libtpu 0.0.42."""
    return tuple(name for name in names_of(part) if jax.lax.axis_size(name) > 1)
