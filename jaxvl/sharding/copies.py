"""Parameters that every device reads as a whole, beside a batch that is sharded, and their
gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxvl.kernels.device import device
from jaxvl.sharding.mesh import BATCH_AXES, batch_shards
from jaxvl.sharding.rules import auto_mesh, constrain, names_of, spec


def copies(x: jax.Array, axes: Sequence[str | None], rows: int) -> jax.Array:
    """A copy of a parameter for every shard of a batch of `rows`: [S, ...], S over `data` x `fsdp`.

    One all-gather over `fsdp`; of the gradient one reduce-scatter over `fsdp` and one sum over
    `data`, however often the copies are read: left to itself, the compiler sums at every read in a
    loop, and all of the gradient on all devices. One copy where there is no mesh or it does not
    divide the rows.

    Args:
      x: laid out by the rules for its logical `axes`.
    """
    mesh = auto_mesh()
    shards = 1 if mesh is None else batch_shards(mesh)
    if shards == 1 or rows % shards:
        return x[None]
    where = spec(axes, shape=x.shape, mesh=mesh)
    several = [names_of(part) for part in where]
    gathered = [tuple(name for name in names if name in BATCH_AXES) for names in several]
    left = [tuple(name for name in names if name not in BATCH_AXES) for names in several]
    if all(mesh.shape[name] == 1 for names in gathered for name in names):
        # libtpu 0.0.42 at little effort ends the process on what is below, if nothing is gathered.
        whole = PartitionSpec(BATCH_AXES, *left)
        return jax.lax.with_sharding_constraint(jnp.broadcast_to(x, (shards, *x.shape)), whole)

    shared = jax.shard_map(
        lambda part: all_gathered(part, gathered)[None],
        in_specs=where,
        out_specs=PartitionSpec(BATCH_AXES, *left),
        axis_names={*BATCH_AXES, *itertools.chain(*left)},
        check_vma=False,
    )
    return shared(_summable(x)).astype(x.dtype)


def scattered(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    dy: jax.Array,
    axes: Sequence[str | None],
    shape: tuple[int, ...],
    rows: int = 0,
) -> jax.Array:
    """The gradient of a kernel, laid out by the rules for its `axes`: `product(x, dy)`, a sum over
    rows, reshaped to `shape`.

    Each device sums its own rows; one reduce-scatter over the mesh axes that split the kernel, one
    sum over the batch's others. Left to itself, the compiler sums all of it on all devices, or
    makes a loop of parts that travel.

    Args:
      rows: dimension of x and dy that holds the rows, or their first one.
    """
    mesh = auto_mesh()
    if mesh is None:
        return product(x, dy).reshape(shape)
    several = [names_of(part) for part in spec(axes, shape=shape, mesh=mesh)]
    split = [tuple(n for n in names if n in BATCH_AXES and mesh.shape[n] > 1) for names in several]
    used = {name for names in split for name in names}
    # Beside experts rows may lie over `expert` too, of which nothing is known here.
    divides = x.shape[rows] % batch_shards(mesh) == 0 and mesh.shape.get("expert", 1) == 1
    if not used:
        return product(x, dy).reshape(shape)
    if not divides:
        return constrain(product(x, dy).reshape(shape), *axes)
    others = tuple(n for n in BATCH_AXES if n not in used and mesh.shape[n] > 1)

    def own(x: jax.Array, dy: jax.Array) -> jax.Array:
        return reduce_scattered(product(x, dy).reshape(shape), split, others)

    of_rows = PartitionSpec(*[None] * rows, BATCH_AXES)
    shared = jax.shard_map(
        own,
        in_specs=(of_rows, of_rows),
        out_specs=PartitionSpec(*[names or None for names in split]),
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
    return constrain(shared(x, dy), *axes)


def all_gathered(part: jax.Array, split: Sequence[tuple[str, ...]]) -> jax.Array:
    """Inside shard_map: the whole array of a device's part; `split`: of each dimension the mesh
    axes that divide it."""
    for dimension, names in enumerate(split):
        if names:
            part = jax.lax.all_gather(part, names, axis=dimension, tiled=True)
    return part


def reduce_scattered(
    total: jax.Array, split: Sequence[tuple[str, ...]], others: tuple[str, ...]
) -> jax.Array:
    """Inside shard_map: a device's part of the sum of all devices' arrays, which `split` divides as
    in `all_gathered`, over those axes and `others`."""
    part = _summable(total)
    for dimension, names in enumerate(split):
        if names:
            part = jax.lax.psum_scatter(part, names, scatter_dimension=dimension, tiled=True)
    part = jax.lax.psum(part, others) if others else part
    return part.astype(total.dtype)


def _summable(x: jax.Array) -> jax.Array:
    """`x` in a dtype in which devices' arrays are summed: XLA for CPUs ends the process (jax 0.10,
    "Invalid binary instruction opcode copy") on sums of 16 bits inside shard_map."""
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.astype(jnp.float32) if narrow and device()[0] == "cpu" else x
