"""Learned tokens of a stack (Jia et al. 2022; Khattak et al. 2023), and learned keys and values of
attention (Li & Liang 2021)."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.stack import stack

Mode = Literal["insert", "replace", "add"]

# The range of PyTorch's `nn.Linear`: uniform in ±1 / sqrt(inputs).
_AS_TORCH = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def put_prompts(x: jax.Array, prompts: jax.Array, kept: jax.Array, after: int) -> jax.Array:
    """Writes the prompts of one layer into its input.

    Args:
      x: [B, T, D].
      prompts: [n, D], which stand at positions `after` … `after + n - 1`.
      kept: float [], the factor on what is there now: 0, or 1 where `prompts` are added to it.

    Returns:
      [B, T, D].
    """
    n = len(prompts)
    there = x[:, after : after + n]
    there = there * kept.astype(x.dtype) + prompts.astype(x.dtype)
    return jax.lax.dynamic_update_slice_in_dim(x, there, after, 1)


class Prompts(nnx.Module):
    """Learned tokens before the first J layers of a stack.

    `tokens[0]` is part of the input of the first layer. Before each of the next J - 1 layers,
    `tokens[l]` replaces what the layers made of the former ones. Later layers go on with what comes
    out of them.

    Args:
      tokens: n, of each layer.
      layers: J; 1: shallow.
      width: D.
      after: tokens in front of them, such as [CLS].
      mode: `insert` (further tokens, which the stack's output lacks), `replace` (in place of
        tokens `after` … `after + n - 1`), `add` (added to those before the first layer, from 0).
      std: of the normal distribution that they are drawn from.
    """

    def __init__(
        self,
        tokens: int,
        layers: int,
        width: int,
        *,
        after: int,
        mode: Mode,
        std: float,
        rngs: nnx.Rngs,
    ):
        value = normal(std)(rngs.params(), (layers, tokens, width), jnp.float32)
        value = value.at[0].set(0.0) if mode == "add" else value
        self.tokens = nnx.Param(value, axes=("layers", "length", "embed"))
        self.count = tokens
        self.after = after
        self.mode = mode

    def learned(self) -> jax.Array:
        """[J, n, D]."""
        return self.tokens[...]

    def make_room(
        self, x: jax.Array, mask: jax.Array | None, real: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Input [B, T, D] and masks [B, T] of the stack, with the places of inserted prompts.

        Raises ValueError for a sequence that is too short, or a mask by position.
        """
        inside = 0 if self.mode == "insert" else self.count
        if x.shape[1] < self.after + inside:
            raise ValueError(
                f"prompts: {self.after} + {inside} tokens are more than the sequence's {x.shape[1]}"
            )
        if self.mode != "insert":
            return x, mask, real
        if mask is not None and mask.ndim != 2:
            raise ValueError("prompts: cannot be inserted where each position has its own mask")
        mask, real = (None if m is None else self._insert(m, True) for m in (mask, real))
        return self._insert(x, 0), mask, real

    def _insert(self, x: jax.Array, value: Any) -> jax.Array:
        shape = (x.shape[0], self.count, *x.shape[2:])
        new = jnp.full(shape, value, x.dtype)
        return jnp.concatenate([x[:, : self.after], new, x[:, self.after :]], axis=1)

    def take_out(self, x: jax.Array) -> jax.Array:
        """The stack's output without inserted prompts, [B, T, D]."""
        if self.mode != "insert":
            return x
        return jnp.concatenate([x[:, : self.after], x[:, self.after + self.count :]], axis=1)

    def by_layer(self, depth: int) -> tuple[jax.Array, np.ndarray]:
        """Arguments of `put_prompts` for every layer, [L, n, D] and [L]."""
        learned = self.learned()
        layers = len(learned)
        kept = (np.arange(depth) >= layers).astype(np.float32)
        kept[0] = self.mode == "add"
        return jnp.pad(learned, ((0, depth - layers), (0, 0), (0, 0))), kept


class CoupledPrompts(Prompts):
    """Prompts that are linear maps of another stack's, one map for each of the J layers (MaPLe).

    Args:
      source: the other stack's prompts [J, n, D'].
      width: D.
      after, mode: as in `Prompts`; an `add` does not begin from 0.
    """

    def __init__(self, source: Prompts, width: int, *, after: int, mode: Mode, rngs: nnx.Rngs):
        layers, count, theirs = source.tokens.shape

        def build(rngs: nnx.Rngs) -> Linear:
            return Linear(theirs, width, axes=("rank", "embed"), init=_AS_TORCH, rngs=rngs)

        self.source = source
        self.map = stack(build, layers, rngs)
        self.count = count
        self.after = after
        self.mode = mode

    def learned(self) -> jax.Array:
        return nnx.vmap(lambda linear, x: linear(x))(self.map, self.source.learned())


class Prefix(nnx.Module):
    """n learned keys and values in front of those of a memory.

    Args:
      tokens: n.
      heads: (H, K).
      std: of the normal distribution that they are drawn from.
    """

    def __init__(
        self,
        tokens: int,
        heads: tuple[int, int],
        *,
        std: float,
        rngs: nnx.Rngs,
    ):
        def draw() -> nnx.Param:
            value = normal(std)(rngs.params(), (tokens, *heads), jnp.float32)
            return nnx.Param(value, axes=("length", "heads", "kv"))

        self.keys = draw()
        self.values = draw()

    def __call__(
        self, k: jax.Array, v: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """k, v [B, N, H, K] and a mask broadcastable to [B, H, T, N] -> the same of n + N."""
        k, v = (
            jnp.concatenate([self._rows(own, there), there], axis=1)
            for own, there in ((self.keys, k), (self.values, v))
        )
        if mask is not None:
            front = [(0, 0)] * (mask.ndim - 1) + [(len(self.keys[...]), 0)]
            mask = jnp.pad(mask, front, constant_values=True)
        return k, v, mask

    @staticmethod
    def _rows(own: nnx.Param, there: jax.Array) -> jax.Array:
        value = own[...].astype(there.dtype)
        return jnp.broadcast_to(value, (there.shape[0], *value.shape))
