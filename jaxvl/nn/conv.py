"""Convolutions, channels last.

`convolve` is the one entry; which form a convolution takes is a matter of speed only:

* 1 x 1 with stride 1, and k x k with stride k, are matrix products;
* depthwise on CPU is a sum of shifted products (`_depthwise_shifted`), elsewhere XLA's grouped
  convolution;
* everything else is XLA's convolution; with stride 1 on CPU the gradient of its kernel is k² matrix
  products, 1.1 to 2.3 times as fast as the convolution that XLA makes of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.linear import project
from jaxvl.sharding import constrain

Pads = tuple[tuple[int, int], tuple[int, int]]
PadRule = Literal["same", "bottom_right", "symmetric"]


def pads(sides: Sequence[int], kernel: int, stride: int, rule: PadRule = "same") -> Pads:
    """Zeros before and after each spatial dimension.

    Args:
      sides: height and width of the input.
      rule: `same`: the output has ceil(side / stride) pixels, an odd zero goes below or right
        (TensorFlow's rule); `symmetric`: kernel // 2 on both sides; `bottom_right`: one less above
        and left where the stride is 2, whatever the side is (what transformers' EfficientNet does;
        equal to `same` on even sides).
    """
    half = kernel // 2
    if rule == "symmetric" or (rule == "bottom_right" and stride == 1):
        return ((half, half), (half, half))
    if rule == "bottom_right":
        return ((half - 1, half), (half - 1, half))
    total = [max((math.ceil(s / stride) - 1) * stride + kernel - s, 0) for s in sides]
    return tuple((t // 2, t - t // 2) for t in total)


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Pads, depthwise: bool = False
) -> jax.Array:
    """x [B, S, S, C], kernel [k, k, C, C'] (depthwise [k, k, 1, C]) -> [B, S', S', C']."""
    if depthwise:
        return _depthwise(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == ((0, 0), (0, 0)):
        return project(x, kernel[0, 0])
    if (
        kernel.shape[:2] == (stride, stride)
        and padding == ((0, 0), (0, 0))
        and x.shape[1] % stride == x.shape[2] % stride == 0
    ):
        return project(space_to_depth(x, stride), kernel.reshape(-1, kernel.shape[-1]))
    if stride == 1:
        return _full(x, kernel, padding)
    return _xla(x, kernel, stride, padding, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _full(x, kernel, padding):
    """Convolution with stride 1."""
    return _xla(x, kernel, 1, padding, 1)


def _full_forward(x, kernel, padding):
    return _full(x, kernel, padding), (x, kernel)


def _full_backward(padding, saved, dy):
    x, kernel = saved
    pull_x = jax.vjp(lambda x: _xla(x, kernel, 1, padding, 1), x)[1]
    default = lambda x, dy: jax.vjp(lambda w: _xla(x, w, 1, padding, 1), kernel)[1](dy)[0]
    products = functools.partial(_kernel_products, side=kernel.shape[0], padding=padding)
    return pull_x(dy)[0], jax.lax.platform_dependent(x, dy, cpu=products, default=default).astype(
        kernel.dtype
    )


_full.defvjp(_full_forward, _full_backward)


def _kernel_products(x, dy, side, padding):
    """dL/dkernel [k, k, C, C'] from x [B, S, S, C] and dL/dy [B, S', S', C']."""
    rows, cols = dy.shape[1:3]
    inputs = x.shape[-1]
    outputs = dy.shape[-1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    dy = dy.reshape(-1, outputs)
    at = lambda i, j: x[:, i : i + rows, j : j + cols].reshape(-1, inputs).T @ dy
    return jnp.stack([jnp.stack([at(i, j) for j in range(side)]) for i in range(side)])


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """[B, S, S, C] -> [B, S / block, S / block, block² · C]."""
    if block == 1:
        return x
    b, s, _, c = x.shape
    n = s // block
    return x.reshape(b, n, block, n, block, c).swapaxes(2, 3).reshape(b, n, n, block * block * c)


def _xla(x, kernel, stride, padding, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _depthwise(x, kernel, stride, padding):
    grouped = functools.partial(_xla, stride=stride, padding=padding, groups=x.shape[-1])
    shifted = functools.partial(_depthwise_shifted, stride=stride, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _depthwise_shifted(x, kernel, stride, padding):
    k = kernel.shape[0]
    height, width = x.shape[1:3]
    rows, cols = ((side + sum(p) - k) // stride + 1 for side, p in zip((height, width), padding))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    y = 0
    for i in range(k):
        for j in range(k):
            y += (
                x[
                    :,
                    i : i + stride * (rows - 1) + 1 : stride,
                    j : j + stride * (cols - 1) + 1 : stride,
                ]
                * kernel[i, j, 0]
            )
    return y


class Conv(nnx.Module):
    """Convolution of [B, S, S, C].

    Args:
      inputs, outputs: channels.
      kernel: side in pixels.
      rule: see `pads`.
      depthwise: one filter per channel; inputs = outputs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        rule: PadRule = "same",
        depthwise: bool = False,
        dtype: DTypeLike = jnp.float32,
    ):
        # Normal with variance 2 / fan_out, as EfficientNet's code has it; a depthwise filter has k²
        # outputs.
        fan_out = kernel * kernel * (1 if depthwise else outputs)
        shape = (kernel, kernel, 1 if depthwise else inputs, outputs)
        value = jax.random.normal(rngs.params(), shape, jnp.float32) * math.sqrt(2.0 / fan_out)
        self.kernel = nnx.Param(value, axes=("kernel", "kernel", "conv_in", "conv_out"))
        self.stride = stride
        self.rule = rule
        self.depthwise = depthwise
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        if self.depthwise:
            # Of filters that are split over the axes that split the batch, the compiler would
            # gather x from all devices.
            kernel = constrain(kernel, None, None, None, None)
        padding = pads(x.shape[1:3], kernel.shape[0], self.stride, self.rule)
        return convolve(
            x.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=padding,
            depthwise=self.depthwise,
        )
