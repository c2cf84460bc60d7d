"""Tokens to experts and back, given who goes where.

Three forms of one map, chosen by `MoeConfig.dispatch`:

    gather   places [G, E, C] read their token; results are added to the tokens they belong to.
             Least work everywhere.
    einsum   the same by products with one-hot matrices [G, S, E, C]: no gather, but 4·S·E·C·D FLOP
             a group.
    ragged   choices sorted by expert and `jax.lax.ragged_dot`: no capacity needed, so nothing is
             dropped. Of one device, or, on a mesh, of each device's own tokens (under `shard_map`;
             the experts are then whole on every device).

On a mesh the first two turn groups spread over data x fsdp x expert into experts spread over
`expert` and back: one all-to-all each.

    device      0 1 2 3 (expert)         0    1    2    3
    groups      a b c d           ->   a..d a..d a..d a..d     the places of experts 0-1 | 2-3 | 4-5
                                       | 6-7
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxvl.aliases import Tree
from jaxvl.sharding import constrain
from jaxvl.sharding.rules import RULES, auto_mesh

_LOG = logging.getLogger(__name__)

Form = Literal["gather", "einsum", "ragged"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Each expert's places and who sits there.

    Attributes:
      token: int32 [G, E, C], in [0, S); 0 where the place is empty.
      gate: float32 [G, E, C], weight of the result; 0 where the place is empty.
      taken: bool [G, E, C].
    """

    token: jax.Array
    gate: jax.Array
    taken: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choices:
    """Each token's experts.

    Attributes:
      expert: int32 [G, S, K], in [0, E).
      gate: float32 [G, S, K]; 0 where a choice has been dropped.
    """

    expert: jax.Array
    gate: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixing:
    """Places that hold mixtures of tokens (soft MoE).

    Attributes:
      dispatch: float32 [G, S, E, C]: place = sum over tokens.
      combine: float32 [G, S, E, C]: token = sum over places.
    """

    dispatch: jax.Array
    combine: jax.Array


def group_size(tokens: int, most: int, experts: int) -> int:
    """S: the largest divisor of `tokens` that is <= `most`. Raises ValueError where that is below
    E, unless there are no more tokens."""
    size = next(s for s in range(min(tokens, most), 0, -1) if tokens % s == 0)
    if size < min(tokens, experts):
        raise ValueError(
            f"group_size: {tokens} tokens have no divisor between the {experts} experts and "
            f"{most}; choose another batch or length"
        )
    return size


def group_axis(groups: int) -> str:
    """Logical axis of `groups` groups: also over the experts' devices where that divides them, else
    as the batch."""
    return "group" if groups % math.prod(n for _, n in _mesh_axes("group")) == 0 else "batch"


def tell_undivided(groups: int) -> None:
    """Says in the log, once, that groups of tokens do not divide over the shards of the batch:
    every device then gathers the tokens of all and runs all groups."""
    shards = math.prod(n for _, n in _mesh_axes("batch"))
    if groups % shards:
        _tell(groups, shards)


@functools.cache
def _tell(groups: int, shards: int) -> None:
    _LOG.warning(
        "moe: %d groups of tokens do not divide over %d shards of the batch, and every device runs "
        "all of them; with a group_size that divides the tokens of a shard there are more groups",
        groups,
        shards,
    )


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of x [G, …] along its last axis, each device with its own groups: the
    compiler would gather them all first."""
    axes = _mesh_axes(group_axis(len(x)))
    if not axes or len(x) % math.prod(n for _, n in axes):
        return jax.lax.top_k(x, k)
    spec = PartitionSpec(tuple(name for name, _ in axes))
    return jax.shard_map(
        lambda x: jax.lax.top_k(x, k), mesh=auto_mesh(), in_specs=spec, out_specs=spec
    )(x)


def _mesh_axes(logical: str) -> list[tuple[str, int]]:
    """(name, devices) of the mesh axes that a logical axis is spread over; none without a mesh."""
    mesh = auto_mesh()
    return [] if mesh is None else [(a, mesh.shape[a]) for a in RULES[logical] if a in mesh.shape]


def run_places(
    x: jax.Array, plan: Places | Mixing, run: Callable[[jax.Array], jax.Array], form: Form
) -> jax.Array:
    """Through the experts by places.

    Args:
      x: [G, S, D], laid out by `group_axis`.
      run: all experts: [G, E, C, D] -> [G, E, C, D].

    Returns:
      float32 [G, S, D].
    """
    groups, size, width = x.shape
    axis = group_axis(len(x))
    if isinstance(plan, Mixing):
        into = plan.dispatch.astype(x.dtype)
        back = plan.combine
    elif form == "einsum":
        where = (plan.token[..., None] == jnp.arange(size)) & plan.taken[..., None]
        where = where.transpose(0, 3, 1, 2)  # [G, S, E, C]
        into = where.astype(x.dtype)
        back = where * plan.gate[:, None]
    else:
        into = back = None

    if into is None:
        _, experts, capacity = plan.token.shape
        flat = plan.token.reshape(groups, -1)
        places = jnp.take_along_axis(x, flat[..., None], axis=1, mode="promise_in_bounds").reshape(
            groups, experts, capacity, width
        )
    else:
        places = jnp.einsum("gsec,gsd->gecd", into, x)
    places = constrain(constrain(places, axis, None, None, None), "batch", "expert", None, None)
    places = constrain(run(places), "batch", "expert", None, None)
    places = constrain(places, axis, None, None, None)
    if into is None:
        results = (places.astype(jnp.float32) * plan.gate[..., None]).reshape(groups, -1, width)
        y = jax.vmap(
            lambda r, t: (
                jnp.zeros((size, width), jnp.float32).at[t].add(r, mode="promise_in_bounds")
            )
        )(results, flat)
    else:
        y = jnp.einsum(
            "gsec,gecd->gsd", back.astype(x.dtype), places, preferred_element_type=jnp.float32
        )
    return constrain(y, axis, None, None)


def run_choices(
    x: jax.Array,
    plan: Choices,
    run: Callable[[Tree, jax.Array, jax.Array], jax.Array],
    weights: Tree,
    experts: int,
) -> jax.Array:
    """Through the experts by sorted choices.

    Args:
      x: [G, S, D].
      run: (weights, rows [N, D], rows of each expert in turn int32 [E]) -> [N, D].
      weights: of the experts, a pytree of arrays.

    Returns:
      float32 [G, S, D].

    Raises:
      ValueError: a mesh that shards the experts, or that does not divide the groups.
    """
    local = functools.partial(_sorted_choices, run=run, experts=experts)
    mesh = auto_mesh()
    axes = _mesh_axes("batch")
    if mesh is None:
        return local(x, plan, weights)
    shards = math.prod(n for _, n in axes)
    if mesh.size != shards or len(x) % shards:
        raise ValueError(
            f"dispatch: 'ragged' needs a mesh of data x fsdp alone that divides the {len(x)} "
            f"groups (mesh: {dict(mesh.shape)}); use 'gather'"
        )
    rows = PartitionSpec(tuple(name for name, _ in axes))
    whole = PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, whole), out_specs=rows)(
        x, plan, weights
    )


def _sorted_choices(x, plan, weights, *, run, experts):
    groups, size, width = x.shape
    k = plan.expert.shape[-1]
    chosen = plan.expert.reshape(-1)
    order = jnp.argsort(chosen, stable=True)
    rows = x.reshape(-1, width)[order // k]
    counts = (chosen[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)
    results = run(weights, rows, counts).astype(jnp.float32) * plan.gate.reshape(-1)[order][:, None]
    return (
        jnp.zeros((groups * size, width), jnp.float32).at[order // k].add(results).reshape(x.shape)
    )
