"""The transformer stack: one parameter tree with a leading layer axis, scanned or unrolled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvl.nn.attention import Attention, Implementation, KeyValue
from jaxvl.nn.linear import normal, xavier
from jaxvl.nn.mlp import Activation, Mlp
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.random import drop_path, dropout, split
from jaxvl.sharding import constrain

Remat = Literal["none", "full", "dots"]
Cross = Literal["between", "after"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of a transformer: D, L, H and F."""

    width: int
    depth: int
    heads: int
    hidden: int


@dataclasses.dataclass(frozen=True)
class StackOptions:
    """How the layers of a stack are built and run.

    Attributes:
      norm: `pre` (x + f(norm(x))) or `post` (norm(x + f(x)), as in BERT).
      activation: of the MLP.
      eps: of the layer norms.
      qk_norm: layer norm of queries and keys.
      dropout: rate on the output of each branch; `hidden_dropout` inside the MLP; `attention_dropout` on the weights.
      drop_path: rate in the last layer; it grows linearly from 0 in the first.
      init_std: standard deviation of all kernels; None: Xavier.
      scan: one compiled layer in a loop (small program, quick compilation) or all layers unrolled (the compiler sees
        across layers). The parameters are the same.
      remat: what the backward pass recomputes: nothing, whole layers, or all but matrix products.
      cross: attention to a memory, `between` self-attention and MLP, or `after` the MLP: a second pair of attention and MLP, which
        normalises the memory first (open_clip's CoCa).
      attention: see `nn.attention.Attention.implementation`.
    """

    norm: Literal["pre", "post"] = "pre"
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    qk_norm: bool = False
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    init_std: float | None = None
    scan: bool = True
    remat: Remat = "none"
    cross: Cross = "between"
    attention: Implementation = "xla"


class Block(nnx.Module):
    """Attention and MLP, each in a residual branch; with a memory, attention to that as well (`StackOptions.cross`).

    Args:
      sizes, options: of the stack.
      memory_width: of the memory, or None for a block without.

    Raises:
      ValueError: a memory in a post-norm block.
    """

    def __init__(self, sizes: Sizes, options: StackOptions, *, rngs: nnx.Rngs, memory_width: int | None = None, dtype: Any = jnp.float32):
        init = xavier if options.init_std is None else normal(options.init_std)
        norm = functools.partial(LayerNorm, eps=options.eps, dtype=dtype)
        self.attention_norm = norm(sizes.width)
        attention = functools.partial(
            Attention, sizes.width, sizes.heads, rngs=rngs, qk_norm=options.qk_norm, dropout=options.attention_dropout, eps=options.eps,
            init=init, implementation=options.attention, dtype=dtype,
        )  # fmt: skip
        self.attention = attention()
        reads = memory_width is not None
        if reads and options.norm == "post":
            raise ValueError("norm: 'post' blocks have no attention to a memory")
        self.cross_norm = norm(sizes.width) if reads else None
        self.cross = attention(memory_width=memory_width) if reads else None
        self.mlp_norm = norm(sizes.width)
        mlp = functools.partial(
            Mlp, sizes.width, sizes.hidden, rngs=rngs, activation=options.activation, dropout=options.hidden_dropout, init=init, dtype=dtype
        )
        self.mlp = mlp()
        after = reads and options.cross == "after"
        self.memory_norm = norm(memory_width) if after else None
        self.cross_mlp_norm = norm(sizes.width) if after else None
        self.cross_mlp = mlp() if after else None
        self.post, self.dropout = options.norm == "post", options.dropout

    def __call__(self, x, memory=None, *, mask=None, causal=False, drop_rate=0.0, train=False, key=None) -> jax.Array:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; mask bool [B, T] or None; `drop_rate` of drop-path in this layer."""
        after = self.cross_mlp is not None
        keys = split(key, 6 if self.cross is None else 12 if after else 9)

        def branch(y, drop_key, path_key):
            return drop_path(dropout(y, self.dropout, drop_key, train=train), drop_rate, path_key, train=train)

        y = x if self.post else self.attention_norm(x)
        x = x + branch(self.attention(y, mask=mask, causal=causal, train=train, key=keys[0]), *keys[1:3])
        x = self.attention_norm(x) if self.post else x
        if self.cross is not None and not after:
            x = x + branch(self.cross(self.cross_norm(x), memory, train=train, key=keys[6]), *keys[7:9])
        y = x if self.post else self.mlp_norm(x)
        x = x + branch(self.mlp(y, train=train, key=keys[3]), *keys[4:6])
        if after:
            x = x + branch(self.cross(self.cross_norm(x), self.memory_norm(memory), train=train, key=keys[6]), *keys[7:9])
            x = x + branch(self.cross_mlp(self.cross_mlp_norm(x), train=train, key=keys[9]), *keys[10:12])
        return self.mlp_norm(x) if self.post else x

    def remember(self, memory: jax.Array) -> KeyValue:
        """Keys and values of a memory [B, N, D'], which `step` attends to."""
        return self.cross.remember(memory if self.memory_norm is None else self.memory_norm(memory))

    def step(self, x: jax.Array, known: dict[str, KeyValue], position: jax.Array) -> tuple[jax.Array, dict[str, KeyValue]]:
        """One position of a growing sequence: x [B, 1, D]; `known` as `Transformer.start` makes it, of this layer."""
        y, own = self.attention.recall(self.attention_norm(x), known["self"], position)
        x, after = x + y, self.cross_mlp is not None
        if self.cross is not None and not after:
            x = x + self.cross.recall(self.cross_norm(x), known["memory"])[0]
        x = x + self.mlp(self.mlp_norm(x))
        if after:
            x = x + self.cross.recall(self.cross_norm(x), known["memory"])[0]
            x = x + self.cross_mlp(self.cross_mlp_norm(x))
        return x, {**known, "self": own}


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` modules of one kind as one module whose parameters have a leading axis L, named `layers`."""
    stacked = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), layers))
    for _, variable in nnx.to_flat_state(nnx.state(stacked, nnx.Param)):
        variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return stacked


def unstack(tree: Any, layers: int) -> list[Any]:
    """The slices of every leaf along its leading axis.

    By `lax.split`, whose gradient is one concatenation; that of indexing would be a sum of L arrays of the full size.
    """
    leaves, structure = jax.tree.flatten(tree)
    slices = [[piece[0] for piece in jax.lax.split(leaf, (1,) * layers)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [s[i] for s in slices]) for i in range(layers)]


def rematerialise(f: Callable, remat: Remat, *, scanned: bool) -> Callable:
    """`f` with its backward pass recomputing as `remat` says."""
    if remat == "none":
        return f
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(f, policy=policy, prevent_cse=not scanned)


class Transformer(nnx.Module):
    """A stack of `Block`s.

    Args:
      sizes, options: shape and behaviour.
      memory_width: of a memory that every layer attends to, or None.
    """

    def __init__(self, sizes: Sizes, options: StackOptions, *, rngs: nnx.Rngs, memory_width: int | None = None, dtype: Any = jnp.float32):
        self.blocks = stack(lambda rngs: Block(sizes, options, rngs=rngs, memory_width=memory_width, dtype=dtype), sizes.depth, rngs)
        self.depth, self.options, self.sizes, self.dtype = sizes.depth, options, sizes, dtype

    def __call__(self, x, memory=None, *, mask=None, causal=False, train=False, key=None) -> jax.Array:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; mask: bool [B, T], True = not padding; causal: t sees 0 … t."""
        graphdef, params = nnx.split(self.blocks)
        drops = bool(self.options.drop_path) and train

        def layer(x, inputs):
            params, key, rate = inputs
            block = nnx.merge(graphdef, params)
            x = block(x, memory, mask=mask, causal=causal, drop_rate=rate if drops else 0.0, train=train, key=key)
            return constrain(x, "batch", None, "embed"), None

        layer = rematerialise(layer, self.options.remat, scanned=self.options.scan)
        x = constrain(x, "batch", None, "embed")
        keys = None if key is None or not train else jax.random.split(key, self.depth)
        rates = np.linspace(0, self.options.drop_path, self.depth, dtype=np.float32) if drops else None
        if self.options.scan:
            return jax.lax.scan(layer, x, (params, keys, rates))[0]
        for i, slice_ in enumerate(unstack(params, self.depth)):
            x, _ = layer(x, (slice_, None if keys is None else keys[i], None if rates is None else rates[i]))
        return x

    def start(self, batch: int, length: int, memory: jax.Array | None = None) -> dict[str, KeyValue]:
        """Keys and values of a sequence of up to `length` positions, none of them known yet, and of the memory [B, N, D'].

        Every array has a leading axis L.
        """
        heads = self.sizes.heads
        empty = jnp.zeros((self.depth, batch, length, heads, self.sizes.width // heads), self.dtype)
        known = {"self": (empty, empty)}
        if memory is None:
            return known
        graphdef, params = nnx.split(self.blocks)
        return {**known, "memory": jax.lax.map(lambda p: nnx.merge(graphdef, p).remember(memory), params)}

    def step(self, x: jax.Array, known: dict[str, KeyValue], position: jax.Array) -> tuple[jax.Array, dict[str, KeyValue]]:
        """The position after those that `known` holds, causally: x [B, 1, D] -> [B, 1, D] and what is known now."""
        graphdef, params = nnx.split(self.blocks)

        def layer(x, inputs):
            params, known = inputs
            x, known = nnx.merge(graphdef, params).step(x, known, position)
            return x, known["self"]

        x, own = jax.lax.scan(layer, x, (params, known))
        return x, {**known, "self": own}
