"""Pictures, videos, spectrograms, waveforms as tokens, with positions by original coordinates (IMP;
Akbari et al. 2023, section 3), and the dropping of tokens.

A tokeniser gives `Patches`: what each token is made of, and where it was. Tokens may be dropped
before they are embedded; those that stay keep their coordinates, so that one table of positions
serves every resolution, length and drop rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.linear import Linear, normal, project


class Patches(NamedTuple):
    """Tokens before they are embedded.

    Attributes:
      values: [B, P, F].
      places: int [B, P, A], a coordinate on each axis of the grid.
      mask: bool [B, P], False where a token is padding; None: all are real.
    """

    values: jax.Array
    places: jax.Array
    mask: jax.Array | None = None


def cut(x: jax.Array, patch: Sequence[int], name: str) -> Patches:
    """Cuts [B, *grid, C] into patches of sides `patch`, in reading order; F = prod(patch) · C.

    Raises:
      ValueError: a side that its patch does not divide; `name` says of what.
    """
    b, *sides, c = x.shape
    for side, p in zip(sides, patch, strict=True):
        if side % p:
            raise ValueError(
                f"{name}: {' x '.join(map(str, sides))} must be a multiple of the patch "
                f"{' x '.join(map(str, patch))}"
            )
    grid = [side // p for side, p in zip(sides, patch)]
    axes = "abd"[: len(grid)]
    x = rearrange(
        x,
        f"n {' '.join(f'({a} p{a})' for a in axes)} c -> n ({' '.join(axes)}) "
        f"({' '.join(f'p{a}' for a in axes)} c)",
        **{f"p{a}": p for a, p in zip(axes, patch)},
    )
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    return Patches(x, jnp.broadcast_to(jnp.asarray(places, jnp.int32), (b, *places.shape)))


def drop_tokens(patches: Patches, rate: float, key: jax.Array) -> Patches:
    """Drops a share `rate` of the tokens of every row, drawn at random (FLIP, Li et al. 2022, arXiv
    2212.00794; PatchDropout). Those that stay keep their order and coordinates.

    Each row keeps max(1, round(P (1 - rate))) of its P tokens, so that shapes do not depend on the
    draw.

    Args:
      key: one for all rows, or [B], one for each row: then what a row keeps does not depend on the
        rows beside it.
    """
    b, p, _ = patches.values.shape
    kept = max(1, round(p * (1 - rate)))
    if key.ndim:
        draw = jax.vmap(lambda row: jax.random.uniform(row, (p,)))(key)
    else:
        draw = jax.random.uniform(key, (b, p))
    chosen = jnp.sort(jax.lax.top_k(draw, kept)[1])
    return jax.tree.map(
        lambda a: jnp.take_along_axis(a, chosen.reshape(b, kept, *[1] * (a.ndim - 2)), 1), patches
    )


class FactoredPositions(nnx.Module):
    """A learned table for each axis of a grid; a position is the sum of its rows.

    Args:
      name: of the input, for errors. sizes: rows of the tables, by axis: the largest grid.
    """

    def __init__(
        self,
        name: str,
        sizes: dict[str, int],
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        scale = (width * len(sizes)) ** -0.5  # of the sum: 1 / sqrt(D), as in the ViT
        self.tables = nnx.Dict(
            {
                axis: nnx.Param(
                    normal(scale)(rngs.params(), (n, width), jnp.float32), axes=("length", "embed")
                )
                for axis, n in sizes.items()
            }
        )
        self.name = name
        self.sizes = dict(sizes)
        self.dtype = dtype

    def check(self, grid: Sequence[int]) -> None:
        """Raises ValueError for a grid that is larger than the tables."""
        for n, (axis, most) in zip(grid, self.sizes.items(), strict=True):
            if n > most:
                raise ValueError(
                    f"{self.name}: {n} patches along {axis} are more than the {most} "
                    f"positions of the model"
                )

    def __call__(self, places: jax.Array) -> jax.Array:
        """int [B, P, A] -> [B, P, D]."""
        rows = [
            jnp.take(table[...], places[..., i], axis=0)
            for i, table in enumerate(self.tables[axis] for axis in self.sizes)
        ]
        return sum(rows[1:], rows[0]).astype(self.dtype)


class GridTokens(nnx.Module):
    """Tokens of whatever lies on a grid: patches, linearly embedded, plus factored positions.

    Args:
      name: of the input. patch: sides of a patch by axis. most: largest sides of the input by axis.
        channels: C.
    """

    def __init__(
        self,
        name: str,
        patch: dict[str, int],
        most: dict[str, int],
        channels: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.patch = tuple(patch.values())
        self.embed = Linear(
            math.prod(self.patch) * channels,
            width,
            axes=("kernel", "embed"),
            bias=False,
            rngs=rngs,
            dtype=dtype,
        )
        self.embed.adaptable = False  # `embed_still` reads its kernel
        sizes = {axis: -(-most[axis] // p) for axis, p in patch.items()}
        self.positions = FactoredPositions(name, sizes, width, rngs=rngs, dtype=dtype)
        self.name = name
        self.dtype = dtype

    def cut(self, x: jax.Array) -> Patches:
        """[B, *sides, C] -> patches. Raises ValueError where sides do not fit."""
        patches = cut(x, self.patch, self.name)
        self.positions.check([side // p for side, p in zip(x.shape[1:-1], self.patch)])
        return patches

    def __call__(self, patches: Patches) -> jax.Array:
        """[B, P, D]."""
        return self.embed(patches.values) + self.positions(patches.places)

    def still(self, x: jax.Array) -> Patches:
        """Pictures [B, S, S, C] as videos of equal frames: their patches in space, one step in
        time."""
        patches = cut(x, self.patch[1:], self.name)
        self.positions.check([1, *(side // p for side, p in zip(x.shape[1:-1], self.patch[1:]))])
        return Patches(patches.values, jnp.pad(patches.places, ((0, 0), (0, 0), (1, 0))))

    def embed_still(self, patches: Patches) -> jax.Array:
        """`__call__` of the repeated frames, at the cost of one: the kernel summed over time."""
        first = self.patch[0]
        rest = patches.values.shape[-1]
        kernel = self.embed.kernel[...].reshape(first, rest, -1).sum(0).astype(self.dtype)
        x = project(patches.values.astype(self.dtype), kernel)
        return x + self.positions(patches.places)
