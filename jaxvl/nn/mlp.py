"""The two-layer perceptron of transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.activations import ACTIVATIONS, Activation
from jaxvl.nn.linear import Initializer, Linear, xavier
from jaxvl.nn.quantized import Quantize
from jaxvl.nn.random import dropout


@dataclasses.dataclass(frozen=True)
class MlpOptions:
    """How a perceptron, or each of several experts, is built and run.

    Attributes:
      activation: between the two maps.
      dropout: rate after the activation.
      bias: of both maps.
      init: of both kernels.
      quantize: of both products of a perceptron, see `nn.quantized`; experts have none of it.
    """

    activation: Activation = "gelu"
    dropout: float = 0.0
    bias: bool = True
    init: Initializer = xavier
    quantize: Quantize | None = None


class Mlp(nnx.Module):
    """`D -> F -> D` with an activation between.

    Args:
      width, hidden: D and F.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        options: MlpOptions = MlpOptions(),
        dtype: DTypeLike = jnp.float32,
    ):
        how = dict(bias=options.bias, rngs=rngs, init=options.init, dtype=dtype)
        how["quantize"] = options.quantize
        self.up = Linear(width, hidden, axes=("embed", "mlp"), **how)
        self.down = Linear(hidden, width, axes=("mlp", "embed"), **how)
        self.activation = options.activation
        self.dropout = options.dropout

    def __call__(
        self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        x = ACTIVATIONS[self.activation](self.up(x))
        return self.down(dropout(x, self.dropout, key, train=train))
