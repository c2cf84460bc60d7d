"""E perceptrons `D -> F -> D` with one parameter each for all of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.activations import ACTIVATIONS
from jaxvl.nn.linear import Initializer
from jaxvl.nn.mlp import MlpOptions
from jaxvl.nn.random import dropout
from jaxvl.sharding import gathered
from jaxvl.sharding.copies import scattered

ExpertWeights = dict[str, dict[str, jax.Array | None]]  # map -> kernel, bias


class Stacked(nnx.Module):
    """E linear maps: kernel [E, in, out], and bias [E, out].

    Args:
      axes: logical names of `in` and `out`.
      init: called once per expert with [in, out].
    """

    def __init__(
        self,
        experts: int,
        inputs: int,
        outputs: int,
        *,
        axes: tuple[str, str],
        bias: bool,
        init: Initializer,
        rngs: nnx.Rngs,
    ):
        keys = jax.random.split(rngs.params(), experts)
        self.axes = ("expert", *axes)
        self.kernel = nnx.Param(
            jax.vmap(lambda key: init(key, (inputs, outputs), jnp.float32))(keys), axes=self.axes
        )
        self.bias = (
            nnx.Param(jnp.zeros((experts, outputs), jnp.float32), axes=("expert", axes[1]))
            if bias
            else None
        )

    def arrays(self, dtype: DTypeLike) -> dict[str, jax.Array | None]:
        """Kernel and bias in the compute dtype."""
        return {
            "kernel": self.kernel[...].astype(dtype),
            "bias": None if self.bias is None else self.bias[...].astype(dtype),
        }

    def each(self, x: jax.Array) -> jax.Array:
        """x [E, N, in] -> [E, N, out], row e through expert e."""
        y = _product(x, self.kernel[...], self.axes)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[:, None]


class Experts(nnx.Module):
    """E perceptrons, each initialised on its own.

    Args:
      experts, width, hidden: E, D and F.
      options: of each; IMP has no bias.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        options: MlpOptions,
        dtype: DTypeLike = jnp.float32,
    ):
        how = dict(bias=options.bias, init=options.init, rngs=rngs)
        self.up = Stacked(experts, width, hidden, axes=("embed", "mlp"), **how)
        self.down = Stacked(experts, hidden, width, axes=("mlp", "embed"), **how)
        self.activation = options.activation
        self.dropout = options.dropout
        self.dtype = dtype

    def weights(self) -> ExpertWeights:
        """All parameters in the compute dtype."""
        return {"up": self.up.arrays(self.dtype), "down": self.down.arrays(self.dtype)}

    def __call__(
        self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """x [G, E, C, D] -> [G, E, C, D]: row e through expert e."""
        groups, experts, places, width = x.shape
        # Rows expert by expert in one dimension: products of [E, N, D] are one matrix product per
        # expert, and on a CPU take half the time of those of [G, E, C, D].
        x = x.astype(self.dtype).swapaxes(0, 1).reshape(experts, groups * places, width)
        x = ACTIVATIONS[self.activation](self.up.each(x))
        x = self.down.each(dropout(x, self.dropout, key, train=train))
        return x.reshape(experts, groups, places, width).swapaxes(0, 1)

    def sorted_rows(self, weights: ExpertWeights, x: jax.Array, counts: jax.Array) -> jax.Array:
        """x [N, D], sorted by expert, `counts` int32 [E] rows for each -> [N, D]; `weights` as
        `weights()` gives them."""
        x = ACTIVATIONS[self.activation](_ragged(x.astype(self.dtype), weights["up"], counts))
        return _ragged(x, weights["down"], counts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """x [E, N, in], kernel [E, in, out] -> [E, N, out] of x's dtype; gathers and keeps as
    `nn.linear.project` does."""
    return _product_forward(x, kernel, axes)[0]


def _product_forward(x, kernel, axes):
    whole = gathered(kernel.astype(x.dtype), axes)
    return jnp.einsum("eni,eio->eno", x, whole), (x, kernel)


def _product_backward(axes, saved, dy):
    x, kernel = saved
    dx = jnp.einsum("eno,eio->eni", dy, gathered(kernel.astype(x.dtype), axes))
    product = lambda x, dy: jnp.einsum("eni,eno->eio", x, dy)
    dkernel = scattered(product, x, dy, axes, kernel.shape, rows=1)
    return dx, dkernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def _ragged(x: jax.Array, w: dict[str, jax.Array | None], counts: jax.Array) -> jax.Array:
    y = jax.lax.ragged_dot(x, w["kernel"], counts)
    return (
        y
        if w["bias"] is None
        else y + jnp.repeat(w["bias"], counts, axis=0, total_repeat_length=len(x))
    )
