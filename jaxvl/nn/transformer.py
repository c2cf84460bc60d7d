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
from jax.typing import DTypeLike

from jaxvl.config import check
from jaxvl.nn.activations import Activation
from jaxvl.nn.attend import Implementation
from jaxvl.nn.attention import Attention, AttentionOptions, KeyValue
from jaxvl.nn.linear import Initializer, normal, xavier
from jaxvl.nn.mlp import Mlp, MlpOptions
from jaxvl.nn.moe import MoeConfig, MoeInputs, MoeOutput
from jaxvl.nn.moe.dispatch import group_axis
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.prompts import Prompts, put_prompts
from jaxvl.nn.quantized import Quantize
from jaxvl.nn.random import adapters_draw_from, drop_path, dropout, split
from jaxvl.nn.stack import Remat as Remat
from jaxvl.nn.stack import run_layers, stack, unstack
from jaxvl.sharding import constrain

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
      bias: of all linear maps and norms.
      qk_norm: layer norm of queries and keys.
      dropout: rate on the output of each branch; `hidden_dropout` inside the MLP;
        `attention_dropout` on the weights.
      drop_path: rate in the last layer; it grows linearly from 0 in the first.
      init_std: standard deviation of all kernels; None: Xavier.
      scan: one compiled layer in a loop (small program, quick compilation) or all layers unrolled
        (the compiler sees across layers). The parameters are the same.
      remat: what the backward pass recomputes: nothing (`none`), whole layers (`full`), the same a
        part of the rows at a time (`chunks`, of layers that draw nothing and have no experts), all
        but products with parameters (`dots`) or but the attention's result (`attention`), or whole
        layers whose inputs wait in the host's memory (`offload`).
      cross: attention to a memory, `between` self-attention and MLP, or `after` the MLP: a second
        pair of attention and MLP, which normalises the memory first (open_clip's CoCa).
      attention: `auto`, `xla`, `flash` or `cudnn`, see `nn.attend`.
      quantize: `int8` or `fp8` products of the layers' linear maps in training, see `nn.quantized`.
      moe: mixtures of experts in place of the MLP of some layers, or None. Call such a stack by
        `Transformer.routed`.
    """

    norm: Literal["pre", "post"] = "pre"
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    bias: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    init_std: float | None = None
    scan: bool = True
    remat: Remat = "none"
    cross: Cross = "between"
    attention: Implementation = "auto"
    quantize: Quantize | None = None
    moe: MoeConfig | None = None

    @property
    def init(self) -> Initializer:
        """Of all kernels."""
        return xavier if self.init_std is None else normal(self.init_std)

    @property
    def of_attention(self) -> AttentionOptions:
        return AttentionOptions(
            bias=self.bias,
            qk_norm=self.qk_norm,
            dropout=self.attention_dropout,
            eps=self.eps,
            init=self.init,
            implementation=self.attention,
            quantize=self.quantize,
            grouped=self.moe is not None,
        )

    @property
    def of_mlp(self) -> MlpOptions:
        return MlpOptions(
            activation=self.activation,
            dropout=self.hidden_dropout,
            bias=self.bias,
            init=self.init,
            quantize=self.quantize,
        )


class Block(nnx.Module):
    """Attention and MLP, each in a residual branch; with a memory, attention to that as well
    (`StackOptions.cross`).

    Args:
      sizes, options: of the stack.
      memory_width: of the memory, or None for a block without.
      moe: of the options: whether this block has it in place of the MLP.

    Raises:
      ValueError: a memory in a post-norm block.
    """

    def __init__(
        self,
        sizes: Sizes,
        options: StackOptions,
        *,
        rngs: nnx.Rngs,
        memory_width: int | None = None,
        moe: bool = False,
        dtype: DTypeLike = jnp.float32,
    ):
        norm = functools.partial(LayerNorm, eps=options.eps, bias=options.bias, dtype=dtype)
        self.attention_norm = norm(sizes.width)
        attention = functools.partial(
            Attention,
            sizes.width,
            sizes.heads,
            rngs=rngs,
            options=options.of_attention,
            dtype=dtype,
        )
        self.attention = attention()
        reads = memory_width is not None
        if reads and options.norm == "post":
            raise ValueError("norm: 'post' blocks have no attention to a memory")
        self.cross_norm = norm(sizes.width) if reads else None
        self.cross = attention(memory_width=memory_width) if reads else None
        self.mlp_norm = norm(sizes.width)
        perceptron = dict(rngs=rngs, options=options.of_mlp, dtype=dtype)
        mlp = functools.partial(Mlp, sizes.width, sizes.hidden, **perceptron)
        self.mlp = None if moe else mlp()
        self.moe = options.moe.build(sizes.width, sizes.hidden, **perceptron) if moe else None
        after = reads and options.cross == "after"
        self.memory_norm = norm(memory_width) if after else None
        self.cross_mlp_norm = norm(sizes.width) if after else None
        self.cross_mlp = mlp() if after else None
        self.post = options.norm == "post"
        self.dropout = options.dropout

    def __call__(
        self,
        x,
        memory=None,
        *,
        mask=None,
        memory_mask=None,
        causal=False,
        drop_rate=0.0,
        train=False,
        key=None,
        **routing: Any,
    ) -> jax.Array | MoeOutput:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D]; masks as in `Transformer`; `drop_rate` of
        drop-path in this layer.

        A block with a MoE gives `MoeOutput`; `routing` are then `real` (the mask for routing
        alone), `modality` and `skills`.
        """
        after = self.cross_mlp is not None
        keys = split(key, 6 + 3 * (self.cross is not None) + 3 * after)

        def branch(y, drop_key, path_key):
            return drop_path(
                dropout(y, self.dropout, drop_key, train=train), drop_rate, path_key, train=train
            )

        y = x if self.post else self.attention_norm(x)
        x = x + branch(
            self.attention(y, mask=mask, causal=causal, train=train, key=keys[0]), *keys[1:3]
        )
        x = self.attention_norm(x) if self.post else x
        if self.cross is not None and not after:
            x = x + branch(
                self.cross(self.cross_norm(x), memory, mask=memory_mask, train=train, key=keys[6]),
                *keys[7:9],
            )
        y = x if self.post else self.mlp_norm(x)
        if self.moe is None:
            y = self.mlp(y, train=train, key=keys[3])
            routed = None
        else:
            real = routing.pop("real", None)
            real = mask if real is None and (mask is None or mask.ndim == 2) else real
            routed = self.moe(y, mask=real, causal=causal, train=train, key=keys[3], **routing)
            y = routed.y
        x = x + branch(y, *keys[4:6])
        if after:
            x = x + branch(
                self.cross(
                    self.cross_norm(x),
                    self.memory_norm(memory),
                    mask=memory_mask,
                    train=train,
                    key=keys[6],
                ),
                *keys[7:9],
            )
            x = x + branch(
                self.cross_mlp(self.cross_mlp_norm(x), train=train, key=keys[9]), *keys[10:12]
            )
        x = self.mlp_norm(x) if self.post else x
        return x if routed is None else dataclasses.replace(routed, y=x)

    def project_kv(self, memory: jax.Array) -> KeyValue:
        """Keys and values of a memory [B, N, D'], which `decode_step` attends to."""
        memory = memory if self.memory_norm is None else self.memory_norm(memory)
        return self.cross.project_kv(memory)

    def decode_step(
        self,
        x: jax.Array,
        kv_cache: KeyValue,
        position: jax.Array,
        cross_kv: KeyValue | None = None,
        skills: tuple[str, ...] | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """One position of a growing sequence: x [B, 1, D]; `kv_cache`, `cross_kv`: of this layer,
        see `Transformer.decode_step`."""
        y, kv_cache = self.attention.decode(self.attention_norm(x), kv_cache, position)
        x = x + y
        after = self.cross_mlp is not None
        if self.cross is not None and not after:
            x = x + self.cross.decode(self.cross_norm(x), cross_kv)[0]
        y = self.mlp_norm(x)
        # One token a row has no capacity to share: nothing is dropped here.
        x = x + (
            self.mlp(y)
            if self.moe is None
            else self.moe(y, skills=skills, causal=True, drops=False).y
        )
        if after:
            x = x + self.cross.decode(self.cross_norm(x), cross_kv)[0]
            x = x + self.cross_mlp(self.cross_mlp_norm(x))
        return x, kv_cache


class Transformer(nnx.Module):
    """A stack of `Block`s.

    Its parameters are `blocks`, with a leading axis of the layers that have an MLP, and
    `moe_blocks`, of those that have a MoE; both in the order of the layers, either of them None
    where there are none.

    Args:
      sizes, options: shape and behaviour.
      memory_width: of a memory that every layer attends to, or None.
      block: what a layer is, with the interface of `Block`.

    Attributes:
      adapter: label -> `nn.prompts.Prompts`, of one adapter at most; None without.
    """

    adapter: nnx.Dict | None = None

    def __init__(
        self,
        sizes: Sizes,
        options: StackOptions,
        *,
        rngs: nnx.Rngs,
        memory_width: int | None = None,
        block: Callable[..., nnx.Module] = Block,
        dtype: DTypeLike = jnp.float32,
    ):
        drops = (options.dropout, options.hidden_dropout, options.attention_dropout)
        check(
            options.remat != "chunks" or not (any(drops) or options.drop_path or options.moe),
            "remat",
            "'chunks' has a part of the rows at a time: layers must have no dropout, drop_path or "
            "experts; 'full' has them all",
        )

        def make(moe: bool) -> nnx.Module | None:
            build = lambda rngs: block(
                sizes, options, rngs=rngs, memory_width=memory_width, moe=moe, dtype=dtype
            )
            return stack(build, count, rngs) if (count := kinds.count(moe)) else None

        kinds = (False,) * sizes.depth if options.moe is None else options.moe.layers(sizes.depth)
        self.blocks = make(False)
        self.moe_blocks = make(True)
        self.kinds = kinds
        self.depth = sizes.depth
        self.options = options
        self.sizes = sizes
        self.dtype = dtype

    def __call__(
        self, x, memory=None, *, mask=None, memory_mask=None, causal=False, train=False, key=None
    ) -> jax.Array:
        """x [B, T, D], memory [B, N, D'] -> [B, T, D].

        Args:
          mask: bool [B, T], True = not padding; or [B, T, T], what each position may see.
          memory_mask: the same of the memory: bool [B, N] or [B, T, N].
          causal: t sees 0 … t only.

        Raises:
          ValueError: in training, where layers have a MoE, whose losses would be lost.
        """
        if train and True in self.kinds:
            raise ValueError(
                "this stack has MoE layers, whose losses would be lost in training; call `routed`"
            )
        return self.routed(
            x, memory, mask=mask, memory_mask=memory_mask, causal=causal, train=train, key=key
        ).y

    def routed(
        self,
        x,
        memory=None,
        *,
        mask=None,
        memory_mask=None,
        moe_inputs: MoeInputs = MoeInputs(),
        causal=False,
        train=False,
        key=None,
    ) -> MoeOutput:
        """The same with what the MoE layers report: losses summed, health stacked over them; both
        empty without such layers.

        Args:
          moe_inputs: what those layers are told beside `mask`.

        Raises:
          ValueError: prompts where a mask is by position, or tokens have a modality.
        """
        prompts = self._prompts
        real = moe_inputs.real
        if prompts is not None:
            if moe_inputs.modality is not None:
                raise ValueError(
                    "prompts: a stack whose tokens have a modality has no place for them"
                )
            x, mask, real = prompts.make_room(x, mask, real)
        drops = bool(self.options.drop_path) and train
        # Beside experts the rows lie over the experts' devices as well: no device repeats another's
        # dense layers, and the compiler, which would spread them so from the groups backwards, has
        # no two layouts to reconcile (it then gathers whole batches).
        over = "batch" if self.options.moe is None else group_axis(len(x))
        routing = dict(real=real, modality=moe_inputs.modality, skills=moe_inputs.skills)

        def layer(block, x, inputs, rows):
            key, rate, learned = inputs
            memory, mask, memory_mask = rows
            if prompts is not None:
                x = put_prompts(x, *learned, prompts.after)
            seen = dict(mask=mask, memory_mask=memory_mask, causal=causal)
            options = routing if block.moe is not None else {}
            how = dict(drop_rate=rate if drops else 0.0, train=train, key=key)
            with adapters_draw_from(key):
                out = block(x, memory, **seen, **how, **options)
            y, report = (out, None) if block.moe is None else (out.y, (out.losses, out.health))
            return constrain(y, over, None, "embed"), report

        x = constrain(x, over, None, "embed")
        draws = key is not None and train and self.options.remat != "chunks"
        keys = jax.random.split(key, self.depth) if draws else None
        rates = (
            np.linspace(0, self.options.drop_path, self.depth, dtype=np.float32) if drops else None
        )
        x, reports = run_layers(
            layer,
            x,
            self._halves,
            self.kinds,
            (keys, rates, None if prompts is None else prompts.by_layer(self.depth)),
            (memory, mask, memory_mask),
            scan=self.options.scan,
            remat=self.options.remat,
        )
        x = x if prompts is None else prompts.take_out(x)
        losses, health = reports or ({}, {})
        return MoeOutput(x, jax.tree.map(lambda a: a.sum(0), losses), health)

    @property
    def _halves(self) -> dict[bool, nnx.Module]:
        return {
            kind: m for kind, m in ((False, self.blocks), (True, self.moe_blocks)) if m is not None
        }

    @property
    def _prompts(self) -> Prompts | None:
        return None if self.adapter is None else next(iter(self.adapter.values()))

    def init_cache(self, batch: int, length: int) -> list[KeyValue]:
        """Keys and values [B, N, H, K] of a sequence of up to `length` positions, all of
        them empty, of every layer.

        Raises ValueError where the stack has prompts.
        """
        if self._prompts is not None:
            raise ValueError(
                "prompts: this stack writes token by token, which has no place for them; "
                "use prefix adapters"
            )
        shape = batch, length, self.sizes.heads, self.sizes.width // self.sizes.heads
        empty = constrain(jnp.zeros(shape, self.dtype), "batch", None, "heads", None)
        return [(empty, empty)] * self.depth

    def layers(self) -> list[nnx.State]:
        """Each layer's weights, as `project_kv` and `decode_step` want them.

        Cut out of the stack once, before the loop over tokens: inside of it they would be copied
        for every token.
        """
        own = {
            kind: iter(unstack(nnx.split(half)[1], self.kinds.count(kind)))
            for kind, half in self._halves.items()
        }
        return [next(own[kind]) for kind in self.kinds]

    def _each(self, layers: list[nnx.State]) -> list[Block]:
        graphs = {kind: nnx.split(half)[0] for kind, half in self._halves.items()}
        return [
            nnx.merge(graphs[kind], layer) for kind, layer in zip(self.kinds, layers, strict=True)
        ]

    def project_kv(self, layers: list[nnx.State], memory: jax.Array) -> list[KeyValue]:
        """Keys and values [B, N, H, K] of the memory [B, N, D'], of every layer."""
        return [block.project_kv(memory) for block in self._each(layers)]

    def decode_step(
        self,
        layers: list[nnx.State],
        x: jax.Array,
        kv_cache: list[KeyValue],
        position: jax.Array,
        cross_kv: list[KeyValue] | None = None,
        skills: tuple[str, ...] | None = None,
    ) -> tuple[jax.Array, list[KeyValue]]:
        """The position after those that `kv_cache` holds, causally: x [B, 1, D] -> [B, 1, D] and
        the cache with it.

        Unrolled whatever `scan` says: a scan over the layers would copy their weights and the whole
        cache for every token.

        Args:
          layers: see `layers`.
          kv_cache: by layer, as `init_cache` begins it.
          position: int []: of x.
          cross_kv: of the memory by layer, see `project_kv`; None: the stack reads none.
        """
        grown = []
        for i, block in enumerate(self._each(layers)):
            x, own = block.decode_step(
                x, kv_cache[i], position, None if cross_kv is None else cross_kv[i], skills
            )
            grown.append(own)
        return x, grown
