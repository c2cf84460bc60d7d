"""A pytree as few arrays: a message between devices costs its latency whatever it holds."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.aliases import Tree


def bundle(tree: Tree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Tree]]:
    """The arrays of `tree`, all vectors whose elements have one size joined to one array `[V, N]`
    of integers with their bits; and the function that makes the tree of such arrays again."""
    leaves, structure = jax.tree.flatten(tree)
    whole = [i for i, leaf in enumerate(leaves) if leaf.ndim != 1]
    vectors: dict[int, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf.ndim == 1:
            vectors.setdefault(leaf.dtype.itemsize, []).append(i)

    def joined(size: int) -> jax.Array:
        bits = jnp.dtype(f"int{8 * size}")
        return jnp.stack([lax.bitcast_convert_type(leaves[i], bits) for i in vectors[size]])

    def unbundle(arrays: list[jax.Array]) -> Tree:
        out = dict(zip(whole, arrays))
        for places, rows in zip(vectors.values(), arrays[len(whole) :], strict=True):
            for i, row in zip(places, rows, strict=True):
                out[i] = lax.bitcast_convert_type(row, leaves[i].dtype)
        return structure.unflatten([out[i] for i in range(len(leaves))])

    return [*(leaves[i] for i in whole), *(joined(size) for size in vectors)], unbundle
