"""From the parameters of a dense model to those of the same model with mixtures of experts
(Komatsuzaki et al. 2022).

Parameters are flat dicts path -> array, as `models.functional` has them. A dense stack holds
`…/blocks/X [L, …]`; one with experts holds its dense layers there and the others in
`…/moe_blocks/X`, with `moe/experts/{up,down}` and a router in place of `mlp`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays
from jaxvl.nn.moe import MoeConfig

# `optim.freeze` that trains nothing but routers, as CLIP-MoE has it.
ALL_BUT_ROUTERS = r"^(?!.*/moe/router/)"


def upcycle(sources: Sequence[Arrays], fresh: Arrays, moe: MoeConfig) -> dict[str, jax.Array]:
    """Parameters of the model with experts.

    Args:
      sources: parameters of one or several dense models of one shape. Everything but the experts
        comes from the first. Expert e is the MLP of source e mod N: identical experts from one,
        CLIP-MoE's diversified ones from several (Zhang et al. 2024).
      fresh: parameters of the model with experts as initialised; the routers' are kept.
      moe: its configuration, shared by its stacks that have experts.

    Raises:
      ValueError: sources that differ in paths or shapes; a parameter of either model that finds no
        counterpart (all are listed), such as biases of MLPs where the experts have none; more
        sources than experts, or skills.
    """
    if not sources or moe.experts % len(sources):
        raise ValueError(f"sources: {len(sources)} must divide the {moe.experts} experts")
    first = sources[0]
    used = set()
    out = {}
    for i, other in enumerate(sources[1:], 1):
        if differing := sorted(
            p
            for p in {*first, *other}
            if jnp.shape(first.get(p)) != jnp.shape(other.get(p)) or p not in first
        ):
            raise ValueError(
                f"sources: number {i} differs from the first in paths or shapes: {differing}"
            )
    for path in fresh:
        if "/moe/router/" in path:
            out[path] = fresh[path]
            continue
        expert = "/moe/experts/" in path
        origin = dense_path(path)
        if origin not in first:
            continue
        used.add(origin)
        arrays = [
            _layers(source[origin], path, fresh, moe)
            for source in (sources if expert else sources[:1])
        ]
        # [L, E, …]: experts come after the layers.
        out[path] = (
            jnp.stack([arrays[e % len(arrays)] for e in range(moe.experts)], axis=1)
            if expert
            else arrays[0]
        )
    _complain(first, fresh, used, out)
    return out


def dense_path(path: str) -> str:
    """Where a dense model has the parameter at `path` of one with experts, or the MLP of an
    expert."""
    path = re.sub(r"(^|/)moe_blocks/", r"\1blocks/", path)
    return path.replace("/moe/experts/", "/mlp/", 1)


def moe_configs(model: object) -> list[MoeConfig]:
    """The different configurations of experts in a model's, a tree of dataclasses."""
    if isinstance(model, MoeConfig):
        return [model]
    parts = (
        [getattr(model, f.name) for f in dataclasses.fields(model)]
        if dataclasses.is_dataclass(model)
        else []
    )
    return list(dict.fromkeys(found for part in parts for found in moe_configs(part)))


def _layers(array: jax.Array, path: str, fresh: Arrays, moe: MoeConfig) -> jax.Array:
    """The layers of a dense stack's parameter that belong to `path`; the whole of any other
    parameter."""
    match = re.search(r"(^|.*/)(moe_blocks|blocks)/", path)
    if match is None or not any(p.startswith(f"{match[1]}moe_blocks/") for p in fresh):
        return array
    kinds = moe.layers(len(array))
    return array[
        jnp.asarray([i for i, kind in enumerate(kinds) if kind == (match[2] == "moe_blocks")])
    ]


def _complain(first: Arrays, fresh: Arrays, used: set[str], out: Arrays) -> None:
    missing = sorted(set(fresh) - set(out))
    lost = sorted(set(first) - used)
    shapes = sorted(p for p in out if out[p].shape != fresh[p].shape)
    if missing or lost or shapes:
        raise ValueError(
            f"upcycle: parameters without a source: {missing or 'none'}; of the source "
            f"without a place: {lost or 'none'}; "
            f"of another shape: "
            f"{[f'{p} {out[p].shape}, not {fresh[p].shape}' for p in shapes] or 'none'}"
        )
