"""Vectors of rows and columns in the layout that Pallas kernels read.

A `[M, 1]` array wastes 127 of 128 lanes of a TPU's memory tiles. So all float vectors of a side are
packed as one `[F, M]` array and all integer ones as another, F and I padded to 8 sublanes. Columns
are read from it as `[1, n]` directly; rows are transposed once per row block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxvl.kernels.contrastive.tiles import Side

SUBLANES = 8

# Vectors that a pass reads; what a side lacks is left out.
TARGET = ("label", "a", "label2", "a2", "ok")
SOFTMAX_GRADIENT = (*TARGET, "m", "l", "gz", "gw", "gu", "tm", "gt")
SIGMOID_GRADIENT = (*TARGET, "g")


def always_read(name: str) -> bool:
    """Whether every pass reads what has this name."""
    return name.startswith("group") or name in ("teacher", "keep")


@dataclasses.dataclass(frozen=True)
class Packed:
    """Vectors of one side.

    Attributes:
      floats: Float[F M], integers: Int[I M].
      names: which row of `floats` or `integers` a vector is.
      teacher: Float[M R] or None.
    """

    floats: jax.Array
    integers: jax.Array
    names: tuple[tuple[str, ...], tuple[str, ...]]
    teacher: jax.Array | None


def pack(side: Side, length: int) -> Packed:
    """The vectors of `side`, padded with zeros to `length`."""
    names = [k for k in side if k != "teacher"]
    floats = tuple(k for k in names if jnp.issubdtype(side[k].dtype, jnp.floating))
    integers = tuple(k for k in names if k not in floats)

    def stack(keys, dtype):
        # A row of nothing keeps the array from being empty.
        rows = [jnp.pad(side[k].astype(dtype), (0, length - side[k].shape[0])) for k in keys]
        rows += [jnp.zeros(length, dtype)] * (-len(rows) % SUBLANES or (0 if rows else SUBLANES))
        return jnp.stack(rows)

    teacher = side.get("teacher")
    if teacher is not None:
        teacher = jnp.pad(teacher, ((0, length - teacher.shape[0]), (0, 0)))
    return Packed(
        stack(floats, jnp.float32), stack(integers, jnp.int32), (floats, integers), teacher
    )


def lanes(floats, integers, names) -> Mapping[str, jax.Array]:
    """Vectors `[1, n]` from blocks (refs or arrays) `[F, n]`, `[I, n]`."""
    out = {k: floats[i : i + 1, :] for i, k in enumerate(names[0])}
    return out | {k: integers[i : i + 1, :] for i, k in enumerate(names[1])}


def sublanes(floats, integers, names) -> Mapping[str, jax.Array]:
    """Vectors `[m, 1]` from transposed blocks `[m, F]`, `[m, I]`."""
    out = {k: floats[:, i : i + 1] for i, k in enumerate(names[0])}
    return out | {k: integers[:, i : i + 1] for i, k in enumerate(names[1])}


def struct(shape: tuple[int, ...], dtype: jnp.dtype, like: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape of a kernel's output that varies over the same manual mesh axes as `like`."""
    kind = jax.typeof(like)
    for name in ("manual_axis_type", "vma"):  # jax 0.10 and later, earlier
        if hasattr(kind, name):
            return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(kind, name)})
    return jax.ShapeDtypeStruct(shape, dtype)
