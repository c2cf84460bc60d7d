"""Activations, which keep their input alone for the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swish", "relu"]
Elementwise = Callable[[jax.Array], jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x · sigmoid(1.702 x)`, the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def keeping_input(f: Elementwise) -> Elementwise:
    """`f`, whose derivative is computed from x in the backward pass.

    JAX's own rule keeps the parts of the derivative that it computes in the forward pass: of an
    exact GELU two arrays beside x, each the largest of a transformer's layer. Reverse mode only, as
    every `jax.custom_vjp`.
    """

    @jax.custom_vjp
    def activation(x: jax.Array) -> jax.Array:
        return f(x)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return f(x), x

    def backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        # Behind a barrier, or the compiler finds the same terms in the forward pass and keeps them.
        _, pull = jax.vjp(f, jax.lax.optimization_barrier(x))
        return pull(dy)

    activation.defvjp(forward, backward)
    return functools.update_wrapper(activation, f, assigned=("__doc__",), updated=())


ACTIVATIONS: Mapping[str, Elementwise] = {
    "gelu": keeping_input(functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_tanh": keeping_input(functools.partial(jax.nn.gelu, approximate=True)),
    "quick_gelu": keeping_input(quick_gelu),
    "swish": keeping_input(jax.nn.swish),
    "relu": jax.nn.relu,
}
