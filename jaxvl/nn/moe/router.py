"""Routers: which tokens go to which experts, and with which weight. All routing is float32 whatever
the dtype of the tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.config import Range, Registry, Scale, Weight, check
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.moe import losses
from jaxvl.nn.moe.dispatch import Choices, Mixing, Places, top_k

ROUTERS = Registry("router")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a router knows of its tokens beside themselves.

    Attributes:
      real: float32 [G, S], 1, or 0 for padding.
      modality: int32 [G, S], in [0, M), or None.
      modalities: their names.
    """

    real: jax.Array
    modality: jax.Array | None = None
    modalities: tuple[str, ...] = ()

    def kinds(self) -> Mapping[str, jax.Array]:
        """Name -> `real` of the tokens of one modality; `all` where none are named."""
        if self.modality is None:
            return {"all": self.real}
        return {name: self.real * (self.modality == i) for i, name in enumerate(self.modalities)}


@dataclasses.dataclass(frozen=True)
class Routing:
    """A router's decision.

    Attributes:
      plan: how `dispatch` carries it out.
      probs: float32 [G, S, E], each token's distribution over the experts.
      mass: float32 [G, S, E], the weight with which an expert's result counts; 0 where it does not
        run on the token.
      losses: name -> float32 [].
      overflow: share of the tokens' choices beyond an expert's capacity, float32 [].
    """

    plan: Places | Choices | Mixing
    probs: jax.Array
    mass: jax.Array
    losses: dict[str, jax.Array]
    overflow: jax.Array


def capacity(factor: float, tokens: int, experts: int) -> int:
    """Places of an expert: `factor · tokens / experts`, rounded, at least 1 and at most
    `tokens`."""
    return max(1, min(tokens, round(factor * tokens / experts)))


class Linear32(nnx.Module):
    """The usual router's logits, `x · kernel` in float32 without bias: [G, S, D] -> [G, S, E]."""

    def __init__(
        self, config: ExpertChoice | TokenChoice, width: int, experts: int, *, rngs: nnx.Rngs
    ):
        self.map = Linear(
            width, experts, axes=("embed", "route"), bias=False, init=normal(0.02), rngs=rngs
        )
        self.config = config
        self.experts = experts

    def logits(self, x: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return self.map(x.astype(jnp.float32))


# --------------------------------------------------------------------------------------------------


@ROUTERS.register("expert_choice")
@dataclasses.dataclass(frozen=True)
class ExpertChoice:
    """Experts choose tokens (Zhou et al. 2022), as IMP (Akbari et al. 2023) has it: balanced
    without any loss.

        p = softmax over experts of x W;  each expert takes the C tokens of the group with its
        largest p;  y_t = sum p_te FFN_e(x_t)

    A token may be taken by none to all experts. What becomes of it depends on the other tokens of
    the group, later ones too: never in a causal layer. Padding has p = 0, so that it fills a place
    only where tokens run out, with weight 0.

    Attributes:
      capacity_factor: experts per token on average; C = max(1, round(factor · S / E)).
    """

    capacity_factor: Scale = 1.0

    forms: ClassVar[tuple[str, ...]] = ("gather", "einsum")
    losses: ClassVar[tuple[str, ...]] = ("z",)

    def __post_init__(self):
        check(self.capacity_factor > 0, "capacity_factor", f"{self.capacity_factor!r} must be > 0")

    def causal_problem(self) -> str | None:
        return "'expert_choice' looks at later tokens of the sequence"

    def build(self, width: int, experts: int, rngs: nnx.Rngs) -> nnx.Module:
        return ExpertChoiceRouter(self, width, experts, rngs=rngs)


class ExpertChoiceRouter(Linear32):
    """See `ExpertChoice`."""

    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        ragged: bool,
        drops: bool,
        train: bool,
        key: jax.Array | None,
    ) -> Routing:
        """x [G, S, D]. The options are those of `TokenChoiceRouter` and not used."""
        del ragged, drops, train, key
        logits = self.logits(x)
        probs = jax.nn.softmax(logits, -1)
        size = capacity(self.config.capacity_factor, x.shape[1], self.experts)
        gate, token = top_k((probs * tokens.real[..., None]).swapaxes(1, 2), size)  # [G, E, C]
        taken = jnp.take_along_axis(tokens.real[:, None], token, -1) > 0
        plan = Places(token, gate, taken)
        return Routing(
            plan,
            probs,
            mass_of(plan, x.shape[1]),
            {"z": losses.router_z(logits, tokens.real)},
            jnp.float32(0),
        )


def mass_of(plan: Places, size: int) -> jax.Array:
    """[G, S, E] of places; no gradient."""
    groups, experts, places = plan.token.shape
    at = jnp.broadcast_to(jnp.arange(experts)[:, None], (experts, places))
    out = jnp.zeros((groups, size, experts))
    return jax.vmap(lambda o, t, g: o.at[t, at].add(g))(
        out, plan.token, jax.lax.stop_gradient(plan.gate)
    )


# --------------------------------------------------------------------------------------------------


@ROUTERS.register("token_choice")
@dataclasses.dataclass(frozen=True)
class TokenChoice:
    """Tokens choose their `top` experts, and what exceeds an expert's capacity is dropped (Shazeer
    et al. 2017; Switch; V-MoE).

    Losses, for the objective to weigh: `balance` (Switch; CLIP-MoE), `importance` and, with noise,
    `load` (V-MoE), `z` (ST-MoE), and LIMoE's `local_entropy/M`, `global_entropy/M` by modality
    (`all` where none are named).

    Attributes:
      top: K.
      capacity_factor: C = max(1, round(factor · K · S / E)); None: no limit, nothing is dropped
        (places [E, S], so better `ragged`).
      priority: who is placed first: `order`, token by token, each with all its choices; `choice`,
        all first choices, then all second ones (GShard); `score`, the same with the tokens in order
        of their largest probability (V-MoE's batch-priority routing).
      renormalise: the K weights of a token sum to 1 (CLIP-MoE); else they are its probabilities.
      noise: standard deviation of noise on the logits in training, in units of 1 / E (V-MoE: 1).
      enough: number of experts that a modality should use at least, as LIMoE's threshold of the
        global entropy; None: all.
    """

    top: Annotated[int, Range(1, 65_536)] = 1
    capacity_factor: Scale | None = 1.25
    priority: Literal["order", "choice", "score"] = "choice"
    renormalise: bool = False
    noise: Weight = 0.0
    enough: float | None = None

    forms: ClassVar[tuple[str, ...]] = ("gather", "einsum", "ragged")
    losses: ClassVar[tuple[str, ...]] = (
        "balance",
        "importance",
        "load",
        "z",
        "local_entropy",
        "global_entropy",
    )

    def __post_init__(self):
        check(self.top >= 1, "top", f"{self.top!r} must be >= 1")
        check(
            self.capacity_factor is None or self.capacity_factor > 0,
            "capacity_factor",
            f"{self.capacity_factor!r} must be > 0, or None",
        )
        check(
            not self.renormalise or self.top > 1,
            "renormalise",
            "with top = 1 every weight would be 1 and the router would not learn",
        )
        check(self.noise >= 0, "noise", f"{self.noise!r} must be >= 0")
        check(
            self.enough is None or self.enough >= 1,
            "enough",
            f"{self.enough!r} is a number of experts; must be >= 1, or None",
        )

    def causal_problem(self) -> str | None:
        """What is wrong with this router in a causal layer, or None."""
        if (
            self.capacity_factor is None
            or self.priority == "order"
            or (self.priority == "choice" and self.top == 1)
        ):
            return None
        return (
            f"priority {self.priority!r} places later tokens before earlier ones; use 'order', or "
            f"capacity_factor=None"
        )

    def build(self, width: int, experts: int, rngs: nnx.Rngs) -> nnx.Module:
        check(self.top <= experts, "top", f"{self.top!r} must be <= the {experts} experts")
        return TokenChoiceRouter(self, width, experts, rngs=rngs)


class TokenChoiceRouter(Linear32):
    """See `TokenChoice`."""

    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        ragged: bool,
        drops: bool,
        train: bool,
        key: jax.Array | None,
    ) -> Routing:
        """Routes x [G, S, D].

        Args:
          ragged: plan by `Choices` instead of `Places`.
          drops: whether the capacity is that of the configuration; else there is none.
          train, key: of the noise.

        Raises:
          ValueError: noise without a key.
        """
        config = self.config
        size = x.shape[1]
        clean = self.logits(x)
        std = config.noise / self.experts
        noisy = clean
        if train and std:
            if key is None:
                raise ValueError(
                    "key: None, but the router's noise is random in training; pass a jax.random.key"
                )
            noisy = clean + std * jax.random.normal(key, clean.shape)
        probs = jax.nn.softmax(noisy, -1)
        gate, expert = top_k(probs, config.top)  # [G, S, K]
        chosen = jax.nn.one_hot(expert, self.experts, dtype=jnp.int32) * tokens.real[
            ..., None, None
        ].astype(jnp.int32)  # [G, S, K, E]
        limited = drops and config.capacity_factor is not None
        places = (
            capacity(config.capacity_factor * config.top, size, self.experts) if limited else size
        )
        place = self._place(chosen, gate)
        kept = chosen.any(-1) & (place < places)
        if config.renormalise:
            gate = gate / gate.sum(-1, keepdims=True)
        gate = jnp.where(kept, gate, 0.0)
        mass = jnp.einsum("gske,gsk->gse", chosen.astype(jnp.float32), jax.lax.stop_gradient(gate))
        plan = (
            Choices(expert, gate)
            if ragged
            else _seat(expert, gate, place, kept, self.experts, places)
        )
        wanted = jnp.maximum(chosen.sum(), 1)
        chosen = chosen.sum(2).astype(jnp.float32)
        found = self._losses(clean, probs, chosen, tokens)
        if train and std:
            bar = jnp.take_along_axis(noisy, expert[..., -1:], -1)[..., 0]
            found["load"] = losses.load(clean, bar, std, tokens.real)
        return Routing(plan, probs, mass, found, 1 - kept.sum() / wanted)

    def _place(self, chosen: jax.Array, gate: jax.Array) -> jax.Array:
        """int32 [G, S, K]: how many choices of the same expert come before; chosen int32 [G, S, K,
        E]."""
        priority = self.config.priority
        if priority == "score":
            order = jnp.argsort(-gate[..., 0], axis=1, stable=True)
            chosen = jnp.take_along_axis(chosen, order[..., None, None], 1)
        by_choice = priority != "order"
        line = chosen.swapaxes(1, 2) if by_choice else chosen
        before = (
            jnp.cumsum(line.reshape(len(line), -1, self.experts), 1).reshape(line.shape) - line
        ).swapaxes(1, 2 if by_choice else 1)
        place = (before * chosen).sum(-1)
        return (
            jnp.take_along_axis(place, jnp.argsort(order, axis=1)[..., None], 1)
            if priority == "score"
            else place
        )

    def _losses(self, clean, probs, chosen, tokens: Tokens) -> dict[str, jax.Array]:
        real = tokens.real
        config = self.config
        found = {
            "balance": losses.balance(probs, chosen, real),
            "importance": losses.importance(probs, real),
            "z": losses.router_z(clean, real),
        }
        threshold = None if config.enough is None else math.log(config.enough)
        for name, theirs in tokens.kinds().items():
            found[f"local_entropy/{name}"] = losses.local_entropy(probs, theirs)
            found[f"global_entropy/{name}"] = losses.global_entropy(probs, theirs, threshold)
        return found


def _seat(expert, gate, place, kept, experts: int, places: int) -> Places:
    """`Places` of choices [G, S, K] of which `kept` sit at `place` of their expert."""
    groups, size, k = expert.shape
    nowhere = experts * places
    seat = jnp.where(kept, expert * places + place, nowhere).reshape(groups, -1)
    which = jnp.broadcast_to(jnp.arange(size * k, dtype=jnp.int32), seat.shape)
    empty = jnp.full((groups, nowhere), -1, jnp.int32)
    choice = jax.vmap(lambda a, s, w: a.at[s].set(w, mode="drop", unique_indices=False))(
        empty, seat, which
    )
    taken = choice >= 0
    choice = jnp.maximum(choice, 0)
    gate = jnp.where(taken, jnp.take_along_axis(gate.reshape(groups, -1), choice, 1), 0.0)
    return Places(*(a.reshape(groups, experts, places) for a in (choice // k, gate, taken)))


# --------------------------------------------------------------------------------------------------


@ROUTERS.register("soft")
@dataclasses.dataclass(frozen=True)
class Soft:
    """Every place is a mixture of tokens, every token a mixture of results (Puigcerver et al. 2023,
    Soft MoE).

        logits = unit(x) · scale · unit(key);  place = softmax over tokens;  y = softmax over all
        places of all experts

    Nothing is dropped, nothing discrete is learned. Tokens of a group see one another: with
    `span="batch"`, in training, those of other examples too.

    Attributes:
      slots: places of an expert in a group.
    """

    slots: Annotated[int, Range(1, 65_536)] = 32

    forms: ClassVar[tuple[str, ...]] = ("gather", "einsum")
    losses: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check(self.slots >= 1, "slots", f"{self.slots!r} must be >= 1")

    def causal_problem(self) -> str | None:
        return "'soft' mixes later tokens of the sequence into earlier ones"

    def build(self, width: int, experts: int, rngs: nnx.Rngs) -> nnx.Module:
        return SoftRouter(self, width, experts, rngs=rngs)


class SoftRouter(nnx.Module):
    """See `Soft`."""

    def __init__(self, config: Soft, width: int, experts: int, *, rngs: nnx.Rngs):
        keys = normal(width**-0.5)(rngs.params(), (width, experts, config.slots), jnp.float32)
        self.kernel = nnx.Param(keys, axes=("embed", "route", "route"))
        self.scale = nnx.Param(jnp.ones((), jnp.float32), axes=())

    def __call__(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        ragged: bool,
        drops: bool,
        train: bool,
        key: jax.Array | None,
    ) -> Routing:
        """x [G, S, D]. The options are those of `TokenChoiceRouter` and not used."""
        del ragged, drops, train, key
        there = tokens.real[..., None, None]
        with jax.default_matmul_precision("highest"):
            logits = jnp.einsum(
                "gsd,dec->gsec",
                _unit(x.astype(jnp.float32), -1),
                self.scale[...] * _unit(self.kernel[...], 0),
            )
        dispatch = (
            jax.nn.softmax(jnp.where(there > 0, logits, jnp.finfo(jnp.float32).min), axis=1) * there
        )
        combine = jax.nn.softmax(logits, axis=(2, 3)) * there
        probs = combine.sum(-1)
        return Routing(
            Mixing(dispatch, combine), probs, jax.lax.stop_gradient(probs), {}, jnp.float32(0)
        )


def _unit(x: jax.Array, axis: int) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-12))


# --------------------------------------------------------------------------------------------------


@ROUTERS.register("skills")
@dataclasses.dataclass(frozen=True)
class Skills:
    """Experts with names, of which a call activates a fixed set S (Dai et al. 2022, SkillNet): y =
    mean over S of FFN_s(x).

    Nothing is learned of the routing. Each skill has parameters of its own; those outside S are not
    read, so that a task which does not name them leaves them and their moments alone.

    Attributes:
      names: of all skills.
    """

    names: tuple[str, ...] = ("text", "image", "general")

    forms: ClassVar[tuple[str, ...]] = ("gather",)
    losses: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check(len(self.names) >= 1, "names", "must name at least one skill")
        check(
            len(set(self.names)) == len(self.names),
            "names",
            f"{list(self.names)!r} names a skill twice",
        )
        check(
            all(n.isidentifier() for n in self.names),
            "names",
            f"{list(self.names)!r} must be letters, digits and underscores",
        )

    def causal_problem(self) -> str | None:
        return None
