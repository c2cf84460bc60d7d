"""Logical axes: modules name the axes of arrays, the rules say which mesh axis shards them.

A parameter is created as `nnx.Param(value, axes=("embed", "mlp"))`. Every axis name must stand in
the rules, and every parameter must name its axes: `param_shardings` refuses a tree in which one
does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxvl.config import nearest

# Logical axis -> mesh axes. Activations use `batch`; all others are axes of parameters (or of
# both).
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",  # width D of the residual stream
    "mlp": "tensor",  # hidden width F
    "heads": "tensor",
    "kv": None,  # width of one head
    "vocab": "tensor",
    "joint": None,  # width of the shared embedding space
    "length": None,  # tokens T, patches P, positions
    "layers": None,  # stacked layers L
    "kernel": None,  # height, width of a convolution; pixels of a patch
    "conv_in": None,
    "conv_out": "fsdp",
    "norm": None,  # scales and biases: small, replicated
    "classes": None,
    "queue": ("data", "fsdp"),  # rows that an objective keeps from earlier steps
    "prototypes": "tensor",  # rows that a head or an objective compares with
    "scalar": None,
    "rank": None,  # inner width of an adapter
    "expert": "expert",  # experts E of a parameter, and of the places of their tokens
    # a router's column per expert: small, every device routes its own tokens to all experts
    "route": None,
    "group": (
        "data",
        "fsdp",
        "expert",
    ),  # groups G of tokens that are routed together, and rows of a stack that has experts
}


def names_of(part: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes that a rule, or a dimension of a `PartitionSpec`, names."""
    return (part,) if isinstance(part, str) else tuple(part or ())


def no_rule(axis: str, rules: Mapping = RULES) -> str:
    """What is wrong with a logical axis that has no rule, in words."""
    return f"has no sharding rule{nearest(axis, list(rules))} (rules: {', '.join(rules)})"


class Decision(NamedTuple):
    """What a rule came to for one dimension of an array.

    Attributes:
      names: mesh axes that shard it.
      wanted: those that its rule names.
      reason: why it is not sharded by them; empty where it is, or where no rule wants it.
    """

    names: tuple[str, ...]
    wanted: tuple[str, ...]
    reason: str = ""


def decide(
    axes: Sequence[str | None],
    rules: Mapping = RULES,
    shape: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> list[Decision]:
    """For each dimension, which mesh axes shard it; see `spec`."""
    used: set[str] = set()
    decisions = []
    for i, axis in enumerate(axes):
        if axis is not None and axis not in rules:
            raise KeyError(f"logical axis {axis!r} {no_rule(axis, rules)}")
        target = rules[axis] if axis is not None else None
        names = names_of(target)
        if mesh is not None:
            names = tuple(n for n in names if n in mesh.shape)
        size = math.prod(mesh.shape[n] for n in names) if mesh is not None else 1
        reason = ""
        if used & set(names):
            reason = f"{' x '.join(names)} shards another dimension"
        elif shape is not None and size and shape[i] % size:
            reason = f"{shape[i]} is not divisible by {' x '.join(names)} = {size}"
        decision = Decision(() if reason else names, names, reason)
        used |= set(decision.names)
        decisions.append(decision)
    return decisions


def spec(
    axes: Sequence[str | None],
    rules: Mapping = RULES,
    shape: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> PartitionSpec:
    """`PartitionSpec` of logical `axes`.

    With `shape` and `mesh`, an axis that its mesh axis does not divide stays whole (layout only,
    never meaning), and a mesh axis is used once (the first axis that asks for it).

    Raises KeyError for a name without a rule.
    """
    out = []
    for decision in decide(axes, rules, shape, mesh):
        names = decision.names
        if len(names) > 1:
            out.append(names)
        else:
            out.append(names[0] if names else None)
    return PartitionSpec(*out)


def auto_mesh() -> AbstractMesh | None:
    """The mesh in use, where it has several devices and the compiler lays arrays out on it (not
    inside `shard_map`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return (
        None
        if mesh.empty or mesh.size == 1 or any("Manual" in str(t) for t in mesh.axis_types)
        else mesh
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` laid out by the rules for `axes` (one logical name or None per dimension); no-op without
    a mesh."""
    mesh = auto_mesh()
    if mesh is None:
        return x
    if len(axes) != x.ndim:
        raise ValueError(f"constrain: {len(axes)} axes {axes} for an array of shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, spec(axes, shape=x.shape, mesh=mesh))


def gathered(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A parameter as a layer computes with it: laid out by the rules for `axes`, but whole over the
    mesh axes that shard the batch. No-op without a mesh.

    Without it the compiler may split the product instead (TPUs: a loop of parts that travel, each
    added to the sum in memory) or gather the rows of the batch.
    """
    mesh = auto_mesh()
    if mesh is None:
        return x
    kept = []
    for decision in decide(axes, shape=x.shape, mesh=mesh):
        names = tuple(n for n in decision.names if n not in RULES["batch"])
        kept.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def param_shardings(
    axes: Mapping[str, tuple[str | None, ...] | None],
    shapes: Mapping[str, tuple[int, ...]],
    mesh: Mesh,
    rules: Mapping = RULES,
) -> dict[str, NamedSharding]:
    """Shardings of a parameter tree.

    Args:
      axes: flat mapping path -> tuple of logical axes (or None where a parameter names none).
      shapes: flat mapping path -> shape.

    Raises:
      ValueError: parameters without axes, or with another number of axes than dimensions; all are
        listed.
      KeyError: an axis name without a rule.
    """
    bad = [
        f"{'/'.join(map(str, p))} {tuple(s)}: {axes.get(p)}"
        for p, s in shapes.items()
        if axes.get(p) is None or len(axes[p]) != len(s)
    ]
    if bad:
        raise ValueError(
            "parameters without a logical axis for every dimension:\n  " + "\n  ".join(bad)
        )
    return {p: NamedSharding(mesh, spec(axes[p], rules, s, mesh)) for p, s in shapes.items()}
