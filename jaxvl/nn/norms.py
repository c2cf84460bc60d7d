"""Normalisation layers. Statistics are float32 whatever the dtype of the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.sharding import constrain


def l2_normalize(x: jax.Array) -> jax.Array:
    """[B, …, D] scaled to length 1 along D, float32; a zero row stays zero."""
    x = constrain(x.astype(jnp.float32), "batch", *[None] * (x.ndim - 1))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


@jax.custom_vjp
def standardize(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x [..., D] with mean 0 and variance 1 along D, times scale [D]; float32.

    The backward pass keeps the standardized x in the dtype of x, and a number for each row; JAX's
    own rule keeps two or three float32 arrays of that size. Reverse mode only, as every
    `jax.custom_vjp`.
    """
    return _standardize_forward(x, scale, eps)[0]


def _standardize_forward(x, scale, eps):
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    y = wide * rate
    return y * scale, (y.astype(x.dtype), rate, scale)


def _standardize_backward(saved, dy):
    y, rate, scale = saved
    dscale = (dy * y).sum(range(dy.ndim - 1))
    dy = dy * scale
    along = (dy * y).mean(-1, keepdims=True)
    dx = rate * (dy - dy.mean(-1, keepdims=True) - y * along)
    return dx.astype(y.dtype), dscale, None


standardize.defvjp(_standardize_forward, _standardize_backward)


class LayerNorm(nnx.Module):
    """Normalises the last dimension (Ba et al. 2016).

    Args:
      width: its size.
      bias: whether to add a learned bias.
      axis: logical name of the scale and bias.
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float = 1e-6,
        bias: bool = True,
        axis: str = "norm",
        dtype: DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=(axis,)) if bias else None
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = standardize(x, self.scale[...], self.eps)
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype)


class BatchNorm(nnx.Module):
    """Normalises each channel over the batch and space (Ioffe & Szegedy 2015).

    In training the statistics are those of the GLOBAL batch: under `jit` on a mesh the mean over
    the batch axis spans all devices, so any mesh gives the result of one device. Running statistics
    (`nnx.BatchStat`) follow as `running = momentum * running + (1 - momentum) * batch`, with the
    biased variance of the batch.

    Where a step runs the encoder on chunks of the batch (microbatches), the statistics are those of
    a chunk; `GroupNorm` has none that depend on the batch.

    Args:
      channels: C of x [B, ..., C].
      momentum: share of the old statistics that is kept.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.99,
        eps: float = 1e-3,
        dtype: DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32), axes=("norm",))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.momentum = momentum
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if train:
            wide = x.astype(jnp.float32)
            dims = tuple(range(x.ndim - 1))
            mean = wide.mean(dims)
            var = jnp.square(wide - mean).mean(dims)
            kept = jnp.float32(self.momentum)
            self.mean[...] = kept * self.mean[...] + (1 - kept) * jax.lax.stop_gradient(mean)
            self.var[...] = kept * self.var[...] + (1 - kept) * jax.lax.stop_gradient(var)
        else:
            mean = self.mean[...]
            var = self.var[...]
        # One multiply-add over the large array; everything else is per channel.
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return (x.astype(jnp.float32) * scale + (self.bias[...] - mean * scale)).astype(self.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over space, row by row (Wu & He 2018): the alternative without
    batch statistics.

    Args:
      channels: C of x [B, ..., C].
      group_width: channels per group; must divide C.

    Raises:
      ValueError: it does not.
    """

    def __init__(
        self,
        channels: int,
        *,
        group_width: int = 8,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
    ):
        if channels % group_width:
            raise ValueError(f"group_width: {group_width} must divide the {channels} channels")
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32), axes=("norm",))
        self.group_width = group_width
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        wide = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, self.group_width)
        dims = (*range(1, x.ndim - 1), x.ndim)
        wide = wide - wide.mean(dims, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(dims, keepdims=True) + self.eps)
        return (wide.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(self.dtype)
