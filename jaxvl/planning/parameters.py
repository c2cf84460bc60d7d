"""Which rule sharded each parameter."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvl.sharding.rules import decide


@dataclasses.dataclass(frozen=True)
class Sharded:
    """A parameter on a mesh.

    Attributes:
      path, shape, dtype: of it.
      axes: logical axis of each dimension.
      over: mesh axes that shard each dimension, `data x fsdp`; empty: it is whole.
      bytes: of all of it.
      bytes_per_device: of a device's part.
      reasons: why dimensions are whole although a rule would split them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    over: tuple[str, ...]
    bytes: int
    bytes_per_device: int
    reasons: tuple[str, ...]


def sharded_parameters(
    axes: Mapping[str, tuple[str | None, ...]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> list[Sharded]:
    """All parameters, those first of which a device holds most.

    Args:
      axes: path -> logical axes.
    """
    made = [_sharded(path, axes[path], shape, mesh) for path, shape in shapes.items()]
    return sorted(made, key=lambda p: (-p.bytes_per_device, p.path))


def _sharded(
    path: str, axes: tuple[str | None, ...], shape: jax.ShapeDtypeStruct, mesh: Mesh
) -> Sharded:
    decisions = decide(axes, shape=shape.shape, mesh=mesh)
    split = [tuple(n for n in d.names if mesh.shape[n] > 1) for d in decisions]
    parts = math.prod(mesh.shape[name] for names in split for name in names)
    size = math.prod(shape.shape) * np.dtype(shape.dtype).itemsize
    reasons = tuple(
        f"{axis}: {decision.reason}" for axis, decision in zip(axes, decisions) if decision.reason
    )
    return Sharded(
        path=path,
        shape=tuple(shape.shape),
        dtype=np.dtype(shape.dtype).name,
        axes=tuple(axes),
        over=tuple(" x ".join(names) for names in split),
        bytes=size,
        bytes_per_device=size // parts,
        reasons=reasons,
    )


def by_axes(parameters: list[Sharded]) -> dict[str, int]:
    """Mesh axes -> number of parameters that they shard."""
    numbers: collections.Counter[str] = collections.Counter()
    for parameter in parameters:
        label = " x ".join(over for over in parameter.over if over) or "no axis"
        numbers[label] += math.prod(parameter.shape)
    return dict(numbers)
