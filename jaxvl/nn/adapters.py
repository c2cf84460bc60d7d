"""Modules that change what a `Linear` gives: low-rank maps, gated ones, bottlenecks.

Each is called with the input x [..., in] and the output y [..., out] of a `Linear` and gives y
anew. `in` and `out` may be several dimensions, as those of the `Linear`.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.nn.activations import ACTIVATIONS, Activation
from jaxvl.nn.linear import Linear, normal, zeros
from jaxvl.nn.random import adapter_key, dropout

Gate = Literal["softmax", "sigmoid"]

_by_inputs = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def axes_of(linear: Linear) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Logical axes of the dimensions that a `Linear` contracts, and of those that it gives; without
    the layers of a stack."""
    names = tuple(linear.kernel.get_metadata()["axes"])
    outputs = len(names) - len(linear.outputs)
    return names[outputs - len(linear.inputs) : outputs], names[outputs:]


def _low_rank(linear: Linear, inner: tuple[int, ...], rngs: nnx.Rngs) -> tuple[Linear, Linear]:
    """A [in, inner], normal with variance 1 / in, and B [inner, out], zero."""
    inputs, outputs = axes_of(linear)
    ranks = ("rank",) * len(inner)
    options = dict(bias=False, rngs=rngs, dtype=linear.dtype)
    a = Linear(linear.inputs, inner, axes=(*inputs, *ranks), init=_by_inputs, **options)
    b = Linear(inner, linear.outputs, axes=(*ranks, *outputs), init=zeros, **options)
    return a, b


class LowRank(nnx.Module):
    """`y + scale · B A dropout(x)`.

    Args:
      linear: whose input and output it has.
      rank: r.
      scale: alpha / r.
      dropout: rate on x.
      number: its own among all adapters, for its key.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        rank: int,
        scale: float,
        dropout: float,
        number: int,
        rngs: nnx.Rngs,
    ):
        self.a, self.b = _low_rank(linear, (rank,), rngs)
        self.scale = scale
        self.dropout = dropout
        self.number = number

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        key = adapter_key(self.number) if self.dropout else None
        x = dropout(x, self.dropout, key, train=key is not None)
        return y + self.scale * self.b(self.a(x))


class GatedExperts(nnx.Module):
    """`y + scale · sum_e g_e(x) B_e A_e x`, by token.

    Args:
      linear: whose input and output it has.
      experts: E with a gate.
      shared: further ones whose gate is 1.
      rank: r of each.
      scale: alpha / r.
      gate: `softmax` over the E experts, or `sigmoid` of each.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        experts: int,
        shared: int,
        rank: int,
        scale: float,
        gate: Gate,
        rngs: nnx.Rngs,
    ):
        self.a, self.b = _low_rank(linear, (experts + shared, rank), rngs)
        self.gate = Linear(
            linear.inputs,
            experts,
            axes=(*axes_of(linear)[0], "rank"),
            init=normal(0.02),
            rngs=rngs,
        )
        self.shared = shared
        self.scale = scale
        self.squash = gate

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = self.gate(x.astype(jnp.float32))
        gates = jax.nn.softmax(logits) if self.squash == "softmax" else jax.nn.sigmoid(logits)
        always = jnp.ones((*gates.shape[:-1], self.shared), gates.dtype)
        gates = jnp.concatenate([gates, always], axis=-1)
        inner = self.a(x)
        inner = inner * gates[..., None].astype(inner.dtype)
        return y + self.scale * self.b(inner)


class Bottleneck(nnx.Module):
    """`y + U f(D y)`: a perceptron of few hidden features, in a residual branch of its own.

    Args:
      linear: whose output it reads and changes.
      hidden: features between.
      activation: f.
      std: of the normal distribution that D and U are drawn from.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        hidden: int,
        activation: Activation,
        std: float,
        rngs: nnx.Rngs,
    ):
        outputs = axes_of(linear)[1]
        options = dict(init=normal(std), rngs=rngs, dtype=linear.dtype)
        self.down = Linear(linear.outputs, hidden, axes=(*outputs, "rank"), **options)
        self.up = Linear(hidden, linear.outputs, axes=("rank", *outputs), **options)
        self.activation = activation

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        del x
        return y + self.up(ACTIVATIONS[self.activation](self.down(y)))
