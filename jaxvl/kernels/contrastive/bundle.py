"""A pytree as few arrays: a message between devices costs its latency whatever it holds; and what
several devices have sent, joined."""

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


def bundled(move: Callable[[jax.Array, int], jax.Array], tree: Tree) -> Tree:
    """The tree of what `move(array, axis of its rows)` makes of the arrays of a bundle: it may
    change the length of that axis, or put another before it."""
    arrays, unbundle = bundle(tree)
    whole = sum(leaf.ndim != 1 for leaf in jax.tree.leaves(tree))
    return unbundle([move(a, 0 if i < whole else 1) for i, a in enumerate(arrays)])


def fold(join: Callable[[Tree, Tree], Tree], parts: Tree) -> Tree:
    """Leaves [k, …] joined over their first axis, neighbours first, in their order."""
    if not jax.tree.leaves(parts):
        return parts
    while (k := len(jax.tree.leaves(parts)[0])) > 1:
        even = k - k % 2
        joined = join(_every_second(parts, 0, even), _every_second(parts, 1, even))
        left = jax.tree.map(lambda a, start=even: a[start:], parts)
        parts = jax.tree.map(lambda *both: jnp.concatenate(both), joined, left)
    return jax.tree.map(lambda a: a[0], parts)


def _every_second(tree: Tree, start: int, stop: int) -> Tree:
    return jax.tree.map(lambda a: a[start:stop:2], tree)
