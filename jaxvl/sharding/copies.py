"""Parameters that every device reads as a whole, beside a batch that is sharded."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from jaxvl.sharding.mesh import BATCH_AXES, batch_shards
from jaxvl.sharding.rules import auto_mesh, spec


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


def _manual(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Of the mesh axes of a dimension those that split the batch."""
    several = (names,) if isinstance(names, str) else tuple(names or ())
    return tuple(name for name in several if name in BATCH_AXES)
