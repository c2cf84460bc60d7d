"""Parameters that every device reads as a whole, beside a batch that is sharded, and their
gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec

from jaxvl.sharding.mesh import BATCH_AXES, batch_shards
from jaxvl.sharding.rules import auto_mesh, constrain, spec


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
    if mesh is None or batch_shards(mesh) == 1 or rows % batch_shards(mesh):
        return x[None]
    split = [_manual(names) for names in spec(axes, shape=x.shape, mesh=mesh)]

    def own(part: jax.Array) -> jax.Array:
        for dimension, names in enumerate(split):
            if names:
                part = jax.lax.all_gather(part, names, axis=dimension, tiled=True)
        return part[None]

    shared = jax.shard_map(
        own,
        in_specs=PartitionSpec(*split),
        out_specs=PartitionSpec(BATCH_AXES),
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
    return shared(x)


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
    split = [_manual(names) for names in spec(axes, shape=shape, mesh=mesh)]
    used = {name for names in split for name in names}
    # Beside experts rows may lie over `expert` too, of which nothing is known here.
    divides = x.shape[rows] % batch_shards(mesh) == 0 and mesh.shape.get("expert", 1) == 1
    if not used:
        return product(x, dy).reshape(shape)
    if not divides:
        return constrain(product(x, dy).reshape(shape), *axes)
    others = tuple(name for name in BATCH_AXES if name not in used)

    def own(x: jax.Array, dy: jax.Array) -> jax.Array:
        part = product(x, dy).reshape(shape)
        for dimension, names in enumerate(split):
            if names:
                part = jax.lax.psum_scatter(part, names, scatter_dimension=dimension, tiled=True)
        return jax.lax.psum(part, others) if others else part

    of_rows = PartitionSpec(*[None] * rows, BATCH_AXES)
    shared = jax.shard_map(
        own,
        in_specs=(of_rows, of_rows),
        out_specs=PartitionSpec(*[names or None for names in split]),
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
    return constrain(shared(x, dy), *axes)


def _manual(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Of the mesh axes of a dimension those that split the batch."""
    several = (names,) if isinstance(names, str) else tuple(names or ())
    return tuple(name for name in several if name in BATCH_AXES)
