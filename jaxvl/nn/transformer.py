"""The transformer stack: one parameter tree with a leading layer axis, scanned or unrolled."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvl.nn.attention import Attention, Implementation, KeyValue
from jaxvl.nn.linear import normal, xavier
from jaxvl.nn.mlp import Activation, Mlp
from jaxvl.nn.moe import MoeConfig, MoeOutput
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.random import drop_path, dropout, split
from jaxvl.nn.stack import Remat as Remat
from jaxvl.nn.stack import run_layers, stack
from jaxvl.sharding import constrain


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
      attention: see `nn.attention.Attention.implementation`.
      moe: mixtures of experts in place of the MLP of some layers, or None. Call such a stack by `Transformer.routed`.
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
    attention: Implementation = "xla"
    moe: MoeConfig | None = None


class Block(nnx.Module):
    """Attention and MLP, each in a residual branch; with a memory, attention to that between the two.

    Args:
      sizes, options: of the stack.
      memory_width: of the memory, or None for a block without.
      moe: of the options: whether this block has it in place of the MLP.

    Raises:
      ValueError: a memory in a post-norm block.
    """

    def __init__(
        self, sizes: Sizes, options: StackOptions, *, rngs: nnx.Rngs, memory_width: int | None = None, moe: bool = False,
        dtype: Any = jnp.float32,
    ):  # fmt: skip
        init = xavier if options.init_std is None else normal(options.init_std)
        self.attention_norm = LayerNorm(sizes.width, eps=options.eps, dtype=dtype)
        attention = functools.partial(
            Attention, sizes.width, sizes.heads, rngs=rngs, qk_norm=options.qk_norm, dropout=options.attention_dropout, eps=options.eps,
            init=init, implementation=options.attention, dtype=dtype,
        )  # fmt: skip
        self.attention = attention()
        reads = memory_width is not None
        if reads and options.norm == "post":
            raise ValueError("norm: 'post' blocks have no attention to a memory")
        self.cross_norm = LayerNorm(sizes.width, eps=options.eps, dtype=dtype) if reads else None
        self.cross = attention(memory_width=memory_width) if reads else None
        self.mlp_norm = LayerNorm(sizes.width, eps=options.eps, dtype=dtype)
        perceptron = dict(rngs=rngs, activation=options.activation, dropout=options.hidden_dropout, init=init, dtype=dtype)
        self.mlp = None if moe else Mlp(sizes.width, sizes.hidden, **perceptron)
        self.moe = options.moe.build(sizes.width, sizes.hidden, **perceptron) if moe else None
        self.post, self.dropout = options.norm == "post", options.dropout

    def __call__(
        self, x, memory=None, *, mask=None, causal=False, drop_rate=0.0, train=False, key=None, **routing: Any
    ) -> jax.Array | MoeOutput:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; mask bool [B, T] or None; `drop_rate` of drop-path in this layer.

        A block with a MoE gives `MoeOutput`; `routing` are then `real` (the mask for routing alone), `modality` and `skills`.
        """
        keys = split(key, 6 if self.cross is None else 9)

        def branch(y, drop_key, path_key):
            return drop_path(dropout(y, self.dropout, drop_key, train=train), drop_rate, path_key, train=train)

        y = x if self.post else self.attention_norm(x)
        x = x + branch(self.attention(y, mask=mask, causal=causal, train=train, key=keys[0]), *keys[1:3])
        x = self.attention_norm(x) if self.post else x
        if self.cross is not None:
            x = x + branch(self.cross(self.cross_norm(x), memory, train=train, key=keys[6]), *keys[7:9])
        y = x if self.post else self.mlp_norm(x)
        if self.moe is None:
            y, routed = self.mlp(y, train=train, key=keys[3]), None
        else:
            real = routing.pop("real", None)
            real = mask if real is None else real
            routed = self.moe(y, mask=real, causal=causal, train=train, key=keys[3], **routing)
            y = routed.y
        x = x + branch(y, *keys[4:6])
        x = self.mlp_norm(x) if self.post else x
        return x if routed is None else dataclasses.replace(routed, y=x)

    def step(
        self, x: jax.Array, known: dict[str, KeyValue], position: jax.Array, skills: tuple[str, ...] | None = None
    ) -> tuple[jax.Array, dict[str, KeyValue]]:
        """One position of a growing sequence: x [B, 1, D]; `known` as `Transformer.start` makes it, of this layer."""
        y, own = self.attention.recall(self.attention_norm(x), known["self"], position)
        x = x + y
        if self.cross is not None:
            x = x + self.cross.recall(self.cross_norm(x), known["memory"])[0]
        y = self.mlp_norm(x)
        # One token a row has no capacity to share: nothing is dropped here.
        y = self.mlp(y) if self.moe is None else self.moe(y, skills=skills, causal=True, drops=False).y
        return x + y, {**known, "self": own}


class Transformer(nnx.Module):
    """A stack of `Block`s.

    Its parameters are `blocks`, with a leading axis of the layers that have an MLP, and `moe_blocks`, of those that have a MoE; both in
    the order of the layers, either of them None where there are none.

    Args:
      sizes, options: shape and behaviour.
      memory_width: of a memory that every layer attends to, or None.
    """

    def __init__(self, sizes: Sizes, options: StackOptions, *, rngs: nnx.Rngs, memory_width: int | None = None, dtype: Any = jnp.float32):
        def make(moe: bool) -> nnx.Module | None:
            build = lambda rngs: Block(sizes, options, rngs=rngs, memory_width=memory_width, moe=moe, dtype=dtype)
            return stack(build, count, rngs) if (count := kinds.count(moe)) else None

        kinds = (False,) * sizes.depth if options.moe is None else options.moe.layers(sizes.depth)
        self.blocks, self.moe_blocks = make(False), make(True)
        self.kinds, self.depth, self.options, self.sizes, self.dtype = kinds, sizes.depth, options, sizes, dtype

    def __call__(self, x, memory=None, *, mask=None, causal=False, train=False, key=None) -> jax.Array:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; mask: bool [B, T], True = not padding; causal: t sees 0 … t.

        Raises:
          ValueError: in training, where layers have a MoE, whose losses would be lost.
        """
        if train and True in self.kinds:
            raise ValueError("this stack has MoE layers, whose losses would be lost in training; call `routed`")
        return self.routed(x, memory, mask=mask, causal=causal, train=train, key=key).y

    def routed(self, x, memory=None, *, mask=None, real=None, modality=None, skills=None, causal=False, train=False, key=None) -> MoeOutput:
        """The same with what the MoE layers report: losses summed, health stacked over them; both empty without such layers.

        Args:
          real: bool [B, T], False for padding that takes no place at an expert; None: `mask`.
          modality, skills: see `nn.moe.Moe`.
        """
        drops = bool(self.options.drop_path) and train
        routing = dict(real=real, modality=modality, skills=skills)

        def layer(block, x, inputs):
            key, rate = inputs
            options = routing if block.moe is not None else {}
            out = block(x, memory, mask=mask, causal=causal, drop_rate=rate if drops else 0.0, train=train, key=key, **options)
            y, report = (out, None) if block.moe is None else (out.y, (out.losses, out.health))
            return constrain(y, "batch", None, "embed"), report

        x = constrain(x, "batch", None, "embed")
        keys = None if key is None or not train else jax.random.split(key, self.depth)
        rates = np.linspace(0, self.options.drop_path, self.depth, dtype=np.float32) if drops else None
        x, reports = run_layers(layer, x, self._halves, self.kinds, (keys, rates), scan=self.options.scan, remat=self.options.remat)
        losses, health = reports or ({}, {})
        return MoeOutput(x, jax.tree.map(lambda a: a.sum(0), losses), health)

    @property
    def _halves(self) -> dict[bool, nnx.Module]:
        return {kind: m for kind, m in ((False, self.blocks), (True, self.moe_blocks)) if m is not None}

    def start(self, batch: int, length: int, memory: jax.Array | None = None) -> dict[str, KeyValue]:
        """Keys and values of a sequence of up to `length` positions, none of them known yet, and of the memory [B, N, D'].

        Every array has a leading axis L.
        """
        heads = self.sizes.heads
        empty = jnp.zeros((self.depth, batch, length, heads, self.sizes.width // heads), self.dtype)
        known = {"self": (empty, empty)}
        if memory is None:
            return known
        remembered = run_layers(lambda block, x, _: (x, block.cross.remember(memory)), (), self._halves, self.kinds, ())[1]
        return {**known, "memory": remembered}

    def step(
        self, x: jax.Array, known: dict[str, KeyValue], position: jax.Array, skills: tuple[str, ...] | None = None
    ) -> tuple[jax.Array, dict[str, KeyValue]]:
        """The position after those that `known` holds, causally: x [B, 1, D] -> [B, 1, D] and what is known now."""

        def layer(block, x, known):
            x, known = block.step(x, known, position, skills)
            return x, known["self"]

        x, own = run_layers(layer, x, self._halves, self.kinds, known)
        return x, {**known, "self": own}
