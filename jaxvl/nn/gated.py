"""Gated attention to a memory, which a language model's layer is given without being disturbed by
it (Flamingo)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.attention import Attention, KeyValue
from jaxvl.nn.mlp import Mlp
from jaxvl.nn.moe import MoeOutput
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.random import drop_path, dropout, split
from jaxvl.nn.transformer import Block, Sizes, StackOptions


class GatedBlock(nnx.Module):
    """A pre-norm `Block` behind a gated attention to a memory (Alayrac et al. 2022, section 2.2 and
    figure 4).

        x <- x + tanh(a) attention(norm(x), memory);  x <- x + tanh(b) mlp(norm(x));  x <- block(x)

    The gates a and b start at 0, where the layer is the block alone. A position that may see
    nothing of the memory gets nothing.

    Args:
      sizes, options: of the stack. memory_width: of the memory.

    Raises:
      ValueError: post-norm options, or no memory.
    """

    def __init__(
        self,
        sizes: Sizes,
        options: StackOptions,
        *,
        rngs: nnx.Rngs,
        memory_width: int | None,
        moe: bool = False,
        dtype: DTypeLike = jnp.float32,
    ):
        if options.norm == "post" or memory_width is None:
            raise ValueError(
                "a gated block is pre-norm and needs a memory: norm='pre' and a memory_width"
            )
        norm = functools.partial(
            LayerNorm, sizes.width, eps=options.eps, bias=options.bias, dtype=dtype
        )
        self.cross_norm = norm()
        self.gated_norm = norm()
        self.cross = Attention(
            sizes.width,
            sizes.heads,
            memory_width=memory_width,
            rngs=rngs,
            options=options.of_attention,
            dtype=dtype,
        )
        self.gated_mlp = Mlp(
            sizes.width, sizes.hidden, rngs=rngs, options=options.of_mlp, dtype=dtype
        )
        self.cross_gate, self.mlp_gate = (
            nnx.Param(jnp.zeros((), jnp.float32), axes=()) for _ in range(2)
        )
        self.block = Block(sizes, options, rngs=rngs, moe=moe, dtype=dtype)
        self.dropout = options.dropout

    @property
    def moe(self) -> nnx.Module | None:
        return self.block.moe

    def __call__(
        self,
        x,
        memory,
        *,
        mask=None,
        memory_mask=None,
        causal=False,
        drop_rate=0.0,
        train=False,
        key=None,
        **routing: Any,
    ) -> jax.Array | MoeOutput:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; as `Block`."""
        keys = split(key, 7)

        def branch(gate, y, drop_key, path_key):
            return _open(
                gate,
                drop_path(
                    dropout(y, self.dropout, drop_key, train=train),
                    drop_rate,
                    path_key,
                    train=train,
                ),
            )

        y = self.cross(self.cross_norm(x), memory, mask=memory_mask, train=train, key=keys[0])
        if memory_mask is not None:
            seen = memory_mask.any(-1)
            y = jnp.where(seen.reshape(len(seen), -1, 1), y, 0)
        x = x + branch(self.cross_gate, y, *keys[1:3])
        x = x + branch(
            self.mlp_gate, self.gated_mlp(self.gated_norm(x), train=train, key=keys[3]), *keys[4:6]
        )
        return self.block(
            x, mask=mask, causal=causal, drop_rate=drop_rate, train=train, key=keys[6], **routing
        )

    def project_kv(self, memory: jax.Array) -> KeyValue:
        """As `Block.project_kv`."""
        return self.cross.project_kv(memory)

    def decode_step(
        self,
        x: jax.Array,
        kv_cache: KeyValue,
        position: jax.Array,
        cross_kv: KeyValue | None = None,
        skills: tuple[str, ...] | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """One position of a growing sequence, as `Block.decode_step`."""
        x = x + _open(self.cross_gate, self.cross.decode(self.cross_norm(x), cross_kv)[0])
        x = x + _open(self.mlp_gate, self.gated_mlp(self.gated_norm(x)))
        return self.block.decode_step(x, kv_cache, position, skills=skills)


def _open(gate: nnx.Param, y: jax.Array) -> jax.Array:
    """tanh(gate) y."""
    return jnp.tanh(gate[...]).astype(y.dtype) * y
