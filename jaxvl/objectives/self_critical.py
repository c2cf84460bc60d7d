"""Captions rewarded for how well they fit their image: self-critical training with a CLIP
reward."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxvl.config import Hidden, Scale, Weight, check
from jaxvl.objectives import OBJECTIVES, Arrays, Context, Loss, Objective, ObjectiveState, StateSpec


@OBJECTIVES.register("self_critical")
@dataclasses.dataclass(frozen=True)
class SelfCritical(Objective):
    """REINFORCE with the greedy caption as baseline (Rennie et al. 2017, arXiv 1612.00563) and
    CLIP-S as reward (Cho et al. 2022, arXiv 2205.13115).

        r(c) = scale relu(cos(image, text(c))) + grammar p(c)
        L = - mean_t (r(sampled) - r(greedy)) log p(w_t)

    The mean is over the tokens that were drawn: up to EOS, without one that was forced. Image and
    text are embedded by a teacher: frozen weights, never those that are trained.

    p(c) is the probability that c is a caption and not a broken one. A two-layer perceptron on the
    teacher's text features gives it. It is trained here, with Adam, beside the model: on the
    batch's captions, and on the same with a token repeated, their tokens shuffled, or one dropped.

    Needs the hook `sample_captions` with the label `captions`. The model reads its captions and
    gives sampled_log_p: Float[Array, "B T"].

        c.teachers = dict(reward=dict(source="initial"))
        task.before = dict(captions=dict(name="sample_captions", teacher="reward"))

    Attributes:
      scale: of the cosine.
      per: mean over all drawn tokens (`token`, as published) or over captions, each with the sum of
        its tokens (`caption`: an unbiased estimate of the gradient of the expected reward).
      grammar: weight of p(c); 0: no such head. The hook then needs `broken=True`.
      grammar_hidden, grammar_lr: hidden width and learning rate of the head.
    """

    scale: Scale = 2.5
    per: Literal["token", "caption"] = "token"
    grammar: Weight = 0.0
    grammar_hidden: Hidden = 256
    grammar_lr: Scale = 3e-3

    reads: ClassVar[tuple[str, ...]] = ("sampled_log_p",)

    def __post_init__(self):
        check(self.scale > 0, "scale", f"{self.scale!r} must be > 0")
        check(self.grammar >= 0, "grammar", f"{self.grammar!r} must be >= 0")
        check(self.grammar_hidden >= 1, "grammar_hidden", f"{self.grammar_hidden!r} must be >= 1")
        check(self.grammar_lr > 0, "grammar_lr", f"{self.grammar_lr!r} must be > 0")

    @property
    def batch_keys(self) -> tuple[str, ...]:
        names = ["sampled", "drawn", "image", "sampled_text", "greedy_text"]
        if self.grammar:
            names += ["real_text", "broken_text", "differs"]
        return tuple(f"captions/{name}" for name in names)

    @property
    def keeps_state(self) -> bool:
        return self.grammar > 0

    def init_state(self, spec: StateSpec) -> ObjectiveState:
        """The head and its optimiser's state, for the width of the teacher's features."""
        if not self.grammar:
            return {}
        width = spec.batch["captions/real_text"].shape[-1]
        init = jax.nn.initializers.lecun_normal()
        hidden = self.grammar_hidden
        head = {
            "in": init(jax.random.key(0), (width, hidden)),
            "in_bias": jnp.zeros(hidden),
            "out": jnp.zeros((hidden, 1)),
            "out_bias": jnp.zeros(1),
        }
        return {"head": head, "adam": self._adam.init(head)}

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.adam(self.grammar_lr)

    def reward(self, image: jax.Array, text: jax.Array, state: ObjectiveState) -> jax.Array:
        """r of captions, float32 [B], from the teacher's features [B, E], unit rows."""
        fits = self.scale * jax.nn.relu(jnp.sum(image * text, -1))
        if not self.grammar:
            return fits
        return fits + self.grammar * jax.nn.sigmoid(logit(state["head"], text))

    def __call__(
        self, outputs: Arrays, batch: Arrays, state: ObjectiveState, context: Context
    ) -> tuple[Loss, ObjectiveState]:
        del context
        found = {name.split("/")[1]: batch[name] for name in self.batch_keys}
        drawn = found["drawn"]
        weight = drawn.astype(jnp.float32)
        sampled = self.reward(found["image"], found["sampled_text"], state)
        greedy = self.reward(found["image"], found["greedy_text"], state)
        advantage = sampled - greedy
        total = jnp.sum(weight * advantage[:, None] * outputs["sampled_log_p"])
        count = jnp.maximum(weight.sum(), 1.0) if self.per == "token" else len(advantage)
        metrics = {
            "reward_sampled": sampled.mean(),
            "reward_greedy": greedy.mean(),
            "drawn_tokens": weight.sum() / len(weight),
            "repeated": repeated(found["sampled"], drawn),
        }
        if self.grammar:
            state, metrics["grammar_accuracy"] = self._train(state, found)
        return Loss(-total / count, metrics), state

    def _train(
        self, state: ObjectiveState, found: dict[str, jax.Array]
    ) -> tuple[ObjectiveState, jax.Array]:
        """One step of the head; its accuracy before it."""
        weight = found["differs"].astype(jnp.float32)
        count = jnp.maximum(weight.sum(), 1.0)

        def loss(head):
            good = logit(head, found["real_text"])
            bad = logit(head, found["broken_text"])
            total = jnp.sum(weight * (jax.nn.softplus(-good) + jax.nn.softplus(bad)))
            right = (good > 0) * 0.5 + (bad <= 0) * 0.5
            return total / count, right

        gradient, right = jax.grad(loss, has_aux=True)(state["head"])
        update, adam = self._adam.update(gradient, state["adam"])
        head = optax.apply_updates(state["head"], update)
        return {"head": head, "adam": adam}, jnp.sum(weight * right) / count


def logit(head: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Of a text's being a caption: features [B, E], unit rows -> [B]."""
    x = features * features.shape[-1] ** 0.5  # entries of about 1
    hidden = jax.nn.gelu(x @ head["in"] + head["in_bias"])
    return (hidden @ head["out"] + head["out_bias"])[:, 0]


def repeated(tokens: jax.Array, drawn: jax.Array) -> jax.Array:
    """Share of the drawn tokens [B, T] that their caption held before."""
    again = jnp.tril(tokens[:, :, None] == tokens[:, None, :], -1).any(-1) & drawn
    return again.sum() / jnp.maximum(drawn.sum(), 1).astype(jnp.float32)
