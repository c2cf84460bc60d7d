"""Layouts that are split further than the rules say: the optimiser's states and the averages of
parameters over `data` (ZeRO stage 1, Rajbhandari et al. 2020, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxvl.sharding.rules import auto_mesh, names_of, spec

AXIS = "data"


def spread(where: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`where` with one dimension split over the axis `data` too.

    The longest that is whole and that `data` divides; where there is none, the one whose parts are
    longest among those that it divides further; else unchanged. The first of equal ones.
    """
    parts = mesh.shape.get(AXIS, 1)
    if parts == 1:
        return where
    names = [*where, *[None] * (len(shape) - len(where))]
    taken = [names_of(part) for part in names]
    lengths = [n // math.prod(mesh.shape[a] for a in axes) for n, axes in zip(shape, taken)]
    fits = [i for i, n in enumerate(lengths) if n % parts == 0]
    fits = [i for i in fits if not taken[i]] or fits
    if not fits:
        return where
    longest = max(fits, key=lambda i: lengths[i])
    names[longest] = (*taken[longest], AXIS) if taken[longest] else AXIS
    return PartitionSpec(*names)


def spread_sharding(where: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """The same of a sharding."""
    return NamedSharding(where.mesh, spread(where.spec, shape, where.mesh))


def constrain_spread(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """`x`, of the logical `axes`, laid out so; no-op without a mesh. A sum over the devices of
    `data` then ends as a part on each (reduce-scatter)."""
    mesh = auto_mesh()
    if mesh is None:
        return x
    own = spec(axes, shape=x.shape, mesh=mesh)
    if any(mesh.shape[name] > 1 for part in own for name in names_of(part)):
        # One axis after the other: at once, the compiler sums all of it on all devices.
        x = jax.lax.with_sharding_constraint(x, own)
    return jax.lax.with_sharding_constraint(x, spread(own, x.shape, mesh))
