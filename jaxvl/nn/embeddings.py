"""Patches of an image as tokens, and positions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.linear import project, vector_axis

_AXES = ("kernel", "kernel", "conv_in", "embed")


class PatchEmbedding(nnx.Module):
    """Cuts an image into patches and maps each to the width.

    A convolution whose stride is its kernel, computed as the one matrix product that it is.

    Args:
      patch: side of a patch in pixels. channels: C.
    """

    def __init__(
        self,
        patch: int,
        channels: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
    ):
        kernel = jax.nn.initializers.lecun_normal()(
            rngs.params(), (patch * patch * channels, width), jnp.float32
        )
        self.kernel = nnx.Param(kernel.reshape(patch, patch, channels, width), axes=_AXES)
        self.bias = (
            nnx.Param(jnp.zeros(width, jnp.float32), axes=(vector_axis("embed"),)) if bias else None
        )
        self.patch = patch
        self.dtype = dtype

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] -> [B, P, D], as `embed` of `cut`."""
        return self.embed(self.cut(image))

    def cut(self, image: jax.Array) -> jax.Array:
        """[B, S, S, C] -> patches [B, P, p² C] in reading order; pixels beyond the last whole patch
        are left out."""
        p = self.patch
        image = image[:, : image.shape[1] // p * p, : image.shape[2] // p * p]
        b, height, width, c = image.shape
        x = image.astype(self.dtype).reshape(b, height // p, p, width // p, p, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)

    def embed(self, patches: jax.Array) -> jax.Array:
        """[B, P, p² C] -> [B, P, D]."""
        x = project(patches, self.kernel[...].astype(self.dtype), _AXES)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


def resample(table: jax.Array, rows: int) -> jax.Array:
    """Learned positions of another number of patches, bilinearly by place in the image
    (Dosovitskiy et al. 2021, section 3.2).

    Args:
      table: [(1 +) P, D]: P is a square, in reading order; a class token's row comes first.
      rows: wanted, (1 +) a square.

    Returns:
      float [rows, D]; `table` itself where either number is not of that kind.
    """
    for first in (0, 1):
        before = math.isqrt(len(table) - first)
        after = math.isqrt(rows - first)
        if before**2 + first == len(table) and after**2 + first == rows:
            break
    else:
        return table
    if before == after:
        return table
    width = table.shape[-1]
    grid = table[first:].reshape(before, before, width)
    grid = jax.image.resize(grid, (after, after, width), "bilinear")
    return jnp.concatenate([table[:first], grid.reshape(-1, width)])


def sincos_2d(grid: int, width: int, of: int | None = None) -> np.ndarray:
    """Fixed two-dimensional sine-cosine positions (MoCo v3; Beyer et al. 2022), float32 [grid²,
    width].

    Args:
      of: side of the grid whose coordinates are used: a patch has the position of its centre's
        place there; None: `grid` itself.

    Raises:
      ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"width: {width} must be a multiple of 4 for sine-cosine positions in two dimensions"
        )
    y, x = (np.mgrid[:grid, :grid] + 0.5) * ((of or grid) / grid) - 0.5
    omega = 1.0 / 10_000.0 ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(
        np.float32
    )
