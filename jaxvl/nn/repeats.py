"""Running modules one after the other, of which those of one shape that follow each other are
compiled once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.aliases import Tree

Run = Callable[[nnx.Module, jax.Array, Tree], jax.Array]


def run_repeats(
    run: Run, modules: Sequence[nnx.Module], x: jax.Array, inputs: Sequence[Tree]
) -> jax.Array:
    """`x = run(module, x, its inputs)` for all modules in order.

    Several of one graph (same shapes, same options) in a row are a `lax.scan` over their
    parameters, which are stacked for it; what a module writes into its own state, such as running
    statistics, is written back.

    Args:
      run: keeps the shape and dtype of x where two modules of one graph follow each other.
      inputs: arrays or None for each module.
    """
    parts = [nnx.split(module) for module in modules]
    for _, alike in itertools.groupby(range(len(modules)), key=lambda i: _kind(*parts[i])):
        numbers = list(alike)
        if len(numbers) == 1:
            [number] = numbers
            x = run(modules[number], x, inputs[number])
            continue
        x = _scanned(run, [modules[i] for i in numbers], x, [inputs[i] for i in numbers])
    return x


def _kind(graph: nnx.GraphDef, state: nnx.State) -> tuple:
    """What modules that may be scanned together have in common."""
    leaves, structure = jax.tree.flatten(state)
    return graph, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _scanned(
    run: Run, modules: Sequence[nnx.Module], x: jax.Array, inputs: Sequence[Tree]
) -> jax.Array:
    graph, _ = nnx.split(modules[0])
    states = [nnx.state(module) for module in modules]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    rest = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)

    def body(x: jax.Array, own: tuple[nnx.State, Tree]) -> tuple[jax.Array, nnx.State]:
        state, given = own
        module = nnx.merge(graph, state)
        y = run(module, x, given)
        written = nnx.state(module, nnx.Not(nnx.Param))
        return y, written

    x, written = jax.lax.scan(body, x, (stacked, rest))
    for number, module in enumerate(modules):
        nnx.update(module, jax.tree.map(lambda leaf, n=number: leaf[n], written))
    return x
