"""The perceptron that projections and predictors are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.activations import ACTIVATIONS, Activation
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import BatchNorm, LayerNorm

Norm = Literal["none", "batch", "layer"]


class Perceptron(nnx.Module):
    """Linear maps with a norm and an activation between: `D -> F -> … -> F -> E`.

    Batch normalisation has the statistics of all rows that the module sees at once: of the global
    batch on any mesh, but of one part where a step runs the model on parts of the batch. Its
    running statistics are state of the model.

    Args:
      widths: D, F …, F and E: one more than there are linear maps.
      norm: after every linear map but the last.
      last_norm: whether the norm follows the last map as well, without an activation (SimSiam).
      activation: after every linear map but the last.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        norm: Norm,
        last_norm: bool,
        activation: Activation,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        layers = len(widths) - 1
        names = ["embed", *["mlp"] * (layers - 1), "joint"]
        linears = []
        norms = []
        for i in range(layers):
            normed = norm != "none" and (i < layers - 1 or last_norm)
            linears.append(
                Linear(
                    widths[i],
                    widths[i + 1],
                    axes=(names[i], names[i + 1]),
                    bias=not normed,  # the norm's own stands for it
                    rngs=rngs,
                    dtype=dtype,
                )
            )
            if normed:
                norms.append(_norm(norm, widths[i + 1], dtype))
        self.linears = nnx.List(linears)
        self.norms = nnx.List(norms)
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, D] -> [B, E] in the dtype of computation."""
        last = len(self.linears) - 1
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < len(self.norms):
                norm = self.norms[i]
                x = norm(x, train=train) if isinstance(norm, BatchNorm) else norm(x)
            if i < last:
                x = ACTIVATIONS[self.activation](x)
        return x


def _norm(kind: Norm, width: int, dtype: DTypeLike) -> nnx.Module:
    if kind == "batch":
        return BatchNorm(width, momentum=0.9, eps=1e-5, dtype=dtype)
    return LayerNorm(width, eps=1e-5, dtype=dtype)
