"""The MoE layer: what stands in a transformer block in place of the MLP."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Count, Depth, Hidden, Range, check
from jaxvl.nn.mlp import Mlp, MlpOptions
from jaxvl.nn.moe.dispatch import (
    Form,
    group_axis,
    group_size,
    run_choices,
    run_places,
    tell_undivided,
)
from jaxvl.nn.moe.experts import Experts
from jaxvl.nn.moe.health import health_of
from jaxvl.nn.moe.router import ROUTERS, ExpertChoice, Skills, TokenChoice, Tokens
from jaxvl.nn.random import split
from jaxvl.sharding import constrain

Span = Literal["batch", "row"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MoeOutput:
    """What a MoE layer, or a stack that has such layers, gives.

    Attributes:
      y: [B, T, D].
      losses: name -> float32 []; `router.py` says which router gives which. Of a stack: the sum
        over its MoE layers.
      health: name -> float32 array, see `health.health_of`. Of a stack: with a leading axis of its
        MoE layers.
    """

    y: jax.Array
    losses: dict[str, jax.Array]
    health: dict[str, jax.Array]

    def by_row(self) -> dict[str, jax.Array]:
        """Losses and health as outputs of a model: `moe/loss/NAME` [B], `moe/health/NAME` [B, …],
        the same in every row.

        Rows are what a step joins where it encodes a batch in parts; the mean over rows is then
        that over the parts.
        """
        named = {f"moe/loss/{k}": v for k, v in self.losses.items()} | {
            f"moe/health/{k}": v for k, v in self.health.items()
        }
        return {
            k: constrain(jnp.broadcast_to(v, (len(self.y), *v.shape)), "batch", *[None] * v.ndim)
            for k, v in named.items()
        }


@dataclasses.dataclass(frozen=True)
class MoeInputs:
    """What the MoE layers of a stack are told of its tokens.

    Attributes:
      real: bool [B, T], False for padding that takes no place at an expert; None: the stack's mask.
      modality, skills: see `Moe`.
    """

    real: jax.Array | None = None
    modality: jax.Array | None = None
    skills: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """Mixtures of experts of a stack, and which of its layers have one. The defaults are IMP's but
    for `last`.

    Attributes:
      router: `expert_choice`, `token_choice`, `soft`, or `skills` (fixed, by name).
      experts: E; of `skills`, as many as there are names.
      last: the last so many layers are MoE (IMP: 6); or
      every: each such layer is (V-MoE: 2, the second, the fourth …).
      hidden: F of an expert; None: the stack's.
      bias: of the experts' linear maps.
      group_size: most tokens of a group. Groups are consecutive tokens of the flattened batch, as
        many as divide it evenly.
      span: `batch`: a group may hold tokens of several examples, so that an example's result
        depends on its companions; `row`: it holds tokens of one, and neither microbatches nor
        companions change a result.
      eval_span: outside training. `row`, which None stands for: an example is routed on its own,
        whatever it is batched with (see `Moe.alone`). `batch`: in groups as in training, where
        padding and companions change an embedding.
      dispatch: `gather`, `einsum` or `ragged`, see `dispatch.py`.
      modalities: names of the kinds of tokens, where the model gives `modality`: health and
        entropies are then by modality.
    """

    router: Annotated[Any, ROUTERS] = ExpertChoice()
    experts: Annotated[int, Range(1, 65_536)] = 16
    last: Depth | None = None
    every: Depth | None = None
    hidden: Hidden | None = None
    bias: bool = False
    group_size: Count = 2048
    span: Span = "batch"
    eval_span: Span | None = None
    dispatch: Form = "gather"
    modalities: tuple[str, ...] = ()

    def __post_init__(self):
        check(
            (self.last is None) != (self.every is None),
            "last",
            "give either last (so many last layers) or every (each such layer)",
        )
        for name in ("experts", "last", "every", "hidden", "group_size"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, f"{value!r} must be >= 1")
        forms = self.router.forms
        check(
            self.dispatch in forms,
            "dispatch",
            f"{self.dispatch!r} is not one of {', '.join(forms)}, which this router has",
        )
        if isinstance(self.router, Skills):
            names = self.router.names
            check(
                self.experts == len(names),
                "experts",
                f"{self.experts} must be the number of skills, {len(names)}",
            )
        if isinstance(self.router, TokenChoice):
            top = self.router.top
            problem = f"{top!r} must be <= the {self.experts} experts"
            check(top <= self.experts, "router.top", problem)
        check(
            len(set(self.modalities)) == len(self.modalities),
            "modalities",
            f"{list(self.modalities)!r} names one twice",
        )

    @property
    def skills(self) -> tuple[str, ...] | None:
        """Names of the experts, where the router is `skills`; else None."""
        return self.router.names if isinstance(self.router, Skills) else None

    def layers(self, depth: int) -> tuple[bool, ...]:
        """Which of `depth` layers are MoE. Raises ConfigError where none would be, or more than
        there are."""
        if self.last is not None:
            check(
                self.last <= depth,
                "moe.last",
                f"{self.last} layers are more than the {depth} of the stack",
            )
            return tuple(i >= depth - self.last for i in range(depth))
        check(
            self.every <= depth,
            "moe.every",
            f"{self.every} is more than the {depth} layers of the stack, of which none would "
            f"be MoE",
        )
        return tuple((i + 1) % self.every == 0 for i in range(depth))

    def build(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        options: MlpOptions = MlpOptions(activation="gelu_tanh"),
        dtype: DTypeLike = jnp.float32,
    ) -> Moe | SkillMoe:
        """The layer of a stack of D = `width`.

        Args:
          hidden: F where the configuration has none.
          options: of the stack's perceptrons; whether experts have a bias says the configuration.
        """
        options = dataclasses.replace(options, bias=self.bias)
        layer = SkillMoe if isinstance(self.router, Skills) else Moe
        return layer(self, width, self.hidden or hidden, rngs=rngs, options=options, dtype=dtype)


class Moe(nnx.Module):
    """Experts with a learned router.

    An embedding must not depend on what it is batched with, so outside training every example is
    routed on its own. A layer that was trained so (`span="row"`) does exactly what it did in
    training. One that was trained on groups of several examples (`span="batch"`) cannot; what
    stands closest to it depends on the router:

        expert choice   An example is a group, and an expert takes max(1, factor · T / E) of its T
                        tokens: as many experts per token as in training. That the choice depends on
                        the batch is a limit of the method, which Zhou et al. (2022) leave open for
                        small batches in serving.
        soft            An example is a group, as in the paper (Puigcerver et al. 2023), with all of
                        its places.
        token choice    No token is dropped. Tokens choose for themselves; only the capacity ties
                        them to others. The loads of one example are far more uneven than those of
                        many, so that the capacity of one would drop what training kept. Each expert
                        has room for all tokens of an example, which is up to E / (factor · K) times
                        the experts' work; `ragged` has no places and does only what is needed.

    Args:
      config: see `MoeConfig`. width, hidden: D and F.
      options: of each expert.

    Raises:
      ValueError: dropout in the experts with `ragged`.
    """

    def __init__(
        self,
        config: MoeConfig,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        options: MlpOptions,
        dtype: DTypeLike = jnp.float32,
    ):
        self.router = config.router.build(width, config.experts, rngs)
        self.experts = Experts(
            config.experts, width, hidden, rngs=rngs, options=options, dtype=dtype
        )
        if config.dispatch == "ragged" and self.experts.dropout:
            raise ValueError(
                "dispatch: 'ragged' has no dropout inside the experts; use 'gather', or "
                "hidden_dropout=0"
            )
        self.config = config
        self.dtype = dtype

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        modality: jax.Array | None = None,
        skills: tuple[str, ...] | None = None,
        causal: bool = False,
        drops: bool = True,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> MoeOutput:
        """Routes and runs.

        Args:
          x: [B, T, D].
          mask: bool [B, T], False where a token is padding; None: all are real.
          modality: int, broadcast to [B, T], in [0, M): index of `config.modalities`.
          skills: of `SkillMoe`; must be None here.
          causal: whether the layer may not look at later tokens.
          drops: False: token choice has no capacity here, so that nothing is dropped (a sequence
            that grows token by token).
          train, key: of noise and dropout.

        Raises:
          ValueError: a causal layer whose router looks ahead; skills; a modality where the
            configuration names none.
        """
        config = self.config
        if causal and (problem := config.router.causal_problem()):
            raise ValueError(
                f"router: {problem}, but the layer is causal; use 'token_choice' that places "
                f"in order"
            )
        if skills is not None:
            raise ValueError(
                f"skills: {skills!r}, but the router is learned; only 'skills' activates "
                f"experts by name"
            )
        if modality is not None and not config.modalities:
            raise ValueError("modality: given, but the configuration's `modalities` names none")
        b, t, d = x.shape
        keys = split(key, 2)
        alone = self.alone(train)
        mixed = config.span == "batch" and not alone
        size = group_size(b * t if mixed else t, t if alone else config.group_size, config.experts)

        def grouped(a: jax.Array) -> jax.Array:
            return a.reshape(-1, size, *a.shape[2:])

        real = jnp.ones((b, t), jnp.float32) if mask is None else mask.astype(jnp.float32)
        kinds = None if modality is None else grouped(jnp.broadcast_to(modality, (b, t)))
        tokens = Tokens(grouped(real), kinds, config.modalities)
        x = grouped(x)
        if train:
            tell_undivided(len(x))
        x = constrain(x, group_axis(len(x)), None, None)
        ragged = config.dispatch == "ragged"
        routing = self.router(
            x, tokens, ragged=ragged, drops=drops and not alone, train=train, key=keys[0]
        )
        x = x.astype(self.dtype)
        if ragged:
            y = run_choices(
                x, routing.plan, self.experts.sorted_rows, self.experts.weights(), config.experts
            )
        else:
            y = run_places(
                x,
                routing.plan,
                lambda places: self.experts(places, train=train, key=keys[1]),
                config.dispatch,
            )
        y = constrain(y.astype(self.dtype).reshape(b, t, d), group_axis(b), None, None)
        return MoeOutput(y, routing.losses, health_of(routing, tokens))

    def alone(self, train: bool) -> bool:
        """Whether an example that was trained in groups of several is now routed on its own, as a
        group of its T tokens."""
        return not train and self.config.span == "batch" and self.config.eval_span != "batch"


class SkillMoe(nnx.Module):
    """Named perceptrons of which a call runs some, see `router.Skills`. Their paths are
    `skills/NAME/…`."""

    def __init__(
        self,
        config: MoeConfig,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        options: MlpOptions,
        dtype: DTypeLike = jnp.float32,
    ):
        names = config.router.names
        self.skills = nnx.Dict(
            {name: Mlp(width, hidden, rngs=rngs, options=options, dtype=dtype) for name in names}
        )
        self.config = config

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        modality: jax.Array | None = None,
        skills: tuple[str, ...] | None = None,
        causal: bool = False,
        drops: bool = True,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> MoeOutput:
        """Mean of the results of `skills`, which is fixed when the program is compiled; the rest as
        for `Moe`.

        Raises:
          ValueError: no skills, or one that is not known.
        """
        del mask, modality, causal, drops
        names = self.config.router.names
        if not skills or not set(skills) <= set(names) or len(set(skills)) < len(skills):
            raise ValueError(f"skills: {skills!r} must be some of {', '.join(names)}, each once")
        results = [
            self.skills[name](x, train=train, key=k)
            for name, k in zip(skills, split(key, len(skills)))
        ]
        y = sum(results[1:], results[0]) / len(skills)
        on = jnp.asarray([name in skills for name in names], jnp.float32)
        zero = jnp.float32(0)
        return MoeOutput(
            y,
            {},
            {
                "load": on / on.sum(),
                "dropped": zero,
                "overflow": zero,
                "entropy": zero,
                "dead": 0 * on,
            },
        )
