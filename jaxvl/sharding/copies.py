"""Parameters that every device reads as a whole, beside a batch that is sharded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
    shards = 1 if mesh is None else batch_shards(mesh)
    if shards == 1 or rows % shards:
        return x[None]
    where = spec(axes, shape=x.shape, mesh=mesh)
    several = [(names,) if isinstance(names, str) else tuple(names or ()) for names in where]
    gathered = [tuple(name for name in names if name in BATCH_AXES) for names in several]
    left = [tuple(name for name in names if name not in BATCH_AXES) for names in several]
    if all(mesh.shape[name] == 1 for names in gathered for name in names):
        # libtpu 0.0.42 at little effort ends the process on what is below, if nothing is gathered.
        whole = PartitionSpec(BATCH_AXES, *left)
        return jax.lax.with_sharding_constraint(jnp.broadcast_to(x, (shards, *x.shape)), whole)

    def own(part: jax.Array) -> jax.Array:
        for dimension, names in enumerate(gathered):
            if names:
                part = jax.lax.all_gather(part, names, axis=dimension, tiled=True)
        return part[None]

    shared = jax.shard_map(
        own,
        in_specs=where,
        out_specs=PartitionSpec(BATCH_AXES, *left),
        axis_names={*BATCH_AXES, *itertools.chain(*left)},
        check_vma=False,
    )
    return shared(x)
