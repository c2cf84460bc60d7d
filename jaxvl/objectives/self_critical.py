"""Captions rewarded for how well they fit their image: self-critical training with a CLIP
reward."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxvl.config import Hidden, PathText, Scale, Weight, check
from jaxvl.objectives import OBJECTIVES, Loss


@OBJECTIVES.register("self_critical")
@dataclasses.dataclass(frozen=True)
class SelfCritical:
    """REINFORCE with the greedy caption as baseline (Rennie et al. 2017, arXiv 1612.00563) and
    CLIP-S as reward (Cho et al. 2022, arXiv 2205.13115).

        r(c) = scale relu(cos(image, text(c))) + grammar p(c)
        L = - mean_t (r(sampled) - r(greedy)) log p(w_t),    over the tokens that were drawn: to EOS, without one that was forced

    Image and text are read by a judge: frozen weights, never those that are trained. p(c) is the
    probability that c is a caption and not a broken one, from a two-layer perceptron on the judge's
    text features. It is trained here, with Adam, beside the model: on the batch's captions and on
    the same with a token repeated, their tokens shuffled, or one dropped.

    `rollout` writes both captions, without gradient; the model then reads `sampled` and gives
    sampled_log_p: Float[Array, "B T"].

    Attributes:
      judge: `initial` (the weights that the run began with), `ema` (the moving average of the
        weights, which `optim.ema` keeps), or the workdir of another run, whose tokenizer and
        preprocessing must be this one's.
      scale: of the cosine.
      temperature: of the samples.
      per: mean over all drawn tokens (`token`, as published) or over captions, each with the sum of
        its tokens (`caption`: an unbiased estimate of the gradient of the expected reward).
      grammar: weight of p(c); 0: no such head.
      grammar_hidden, grammar_lr: hidden width and learning rate of the head.
    """

    judge: PathText = "initial"
    scale: Scale = 2.5
    temperature: Scale = 1.0
    per: Literal["token", "caption"] = "token"
    grammar: Weight = 0.0
    grammar_hidden: Hidden = 256
    grammar_lr: Scale = 3e-3

    reads: ClassVar[tuple[str, ...]] = ("sampled_log_p",)
    batch_keys: ClassVar[tuple[str, ...]] = ("text", "position")

    def __post_init__(self):
        check(bool(self.judge), "judge", "is empty; must be initial, ema, or the workdir of a run")
        check(self.scale > 0, "scale", f"{self.scale!r} must be > 0")
        check(self.temperature > 0, "temperature", f"{self.temperature!r} must be > 0")
        check(self.grammar >= 0, "grammar", f"{self.grammar!r} must be >= 0")
        check(self.grammar_hidden >= 1, "grammar_hidden", f"{self.grammar_hidden!r} must be >= 1")
        check(self.grammar_lr > 0, "grammar_lr", f"{self.grammar_lr!r} must be > 0")

    def init_aux(self, width: int = 1) -> dict[str, Any]:
        """The head and its optimiser's state; `width`: E of the judge's features."""
        if not self.grammar:
            return {}
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

    def rollout(self, actor, batch, aux, keys: jax.Array) -> dict[str, jax.Array]:
        """What a step has to know before its gradient (see `objectives`); keys: one per row.

        Returns:
          sampled, greedy: int32 [B, T]; sampled_drawn: bool [B, T]; reward_sampled, reward_greedy:
            float32 [B]; with a grammar head
          also grammar_real, grammar_broken: float32 [B, E], and grammar_differs: bool [B].
        """
        sampled, drawn = actor.write(keys, temperature=self.temperature)
        greedy, _ = actor.write()
        image = actor.encode_image()

        def reward(tokens):
            features = actor.encode_text(tokens)
            fits = self.scale * jax.nn.relu(jnp.sum(image * features, -1))
            return (
                fits + self.grammar * jax.nn.sigmoid(logit(aux["head"], features))
                if self.grammar
                else fits
            )

        out = {"sampled": sampled, "sampled_drawn": drawn, "greedy": greedy}
        out |= {"reward_sampled": reward(sampled), "reward_greedy": reward(greedy)}
        if self.grammar:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(
                keys
            )  # tokens are drawn with 0, 1, …
            broken, differs = jax.vmap(lambda *row: corrupt(*row, actor.eos_id, actor.pad_id))(
                batch["text"], keys
            )
            out |= {
                "grammar_real": actor.encode_text(batch["text"]),
                "grammar_broken": actor.encode_text(broken),
                "grammar_differs": differs,
            }
        return out

    def __call__(self, outputs, batch, aux, key):
        del key
        weight = batch["sampled_drawn"].astype(jnp.float32)
        advantage = batch["reward_sampled"] - batch["reward_greedy"]
        total = jnp.sum(weight * advantage[:, None] * outputs["sampled_log_p"])
        loss = -total / (jnp.maximum(weight.sum(), 1.0) if self.per == "token" else len(advantage))
        metrics = {
            "reward_sampled": batch["reward_sampled"].mean(),
            "reward_greedy": batch["reward_greedy"].mean(),
            "drawn_tokens": weight.sum() / len(weight),
            "repeated": repeated(batch["sampled"], batch["sampled_drawn"]),
        }
        if not self.grammar:
            return Loss(loss, metrics), aux
        aux, metrics["grammar_accuracy"] = self._train(aux, batch)
        return Loss(loss, metrics), aux

    def _train(self, aux: dict[str, Any], batch) -> tuple[dict[str, Any], jax.Array]:
        """One step of the head; its accuracy before it."""
        real, broken, weight = (batch[f"grammar_{k}"] for k in ("real", "broken", "differs"))
        weight = weight.astype(jnp.float32)
        count = jnp.maximum(weight.sum(), 1.0)

        def loss(head):
            good = logit(head, real)
            bad = logit(head, broken)
            return jnp.sum(weight * (jax.nn.softplus(-good) + jax.nn.softplus(bad))) / count, (
                (good > 0) * 0.5 + (bad <= 0) * 0.5
            )

        gradient, right = jax.grad(loss, has_aux=True)(aux["head"])
        update, adam = self._adam.update(gradient, aux["adam"])
        return {**aux, "head": optax.apply_updates(aux["head"], update), "adam": adam}, jnp.sum(
            weight * right
        ) / count


def logit(head: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Of a text's being a caption: features [B, E], unit rows -> [B]."""
    x = features * features.shape[-1] ** 0.5  # entries of about 1
    hidden = jax.nn.gelu(x @ head["in"] + head["in_bias"])
    return (hidden @ head["out"] + head["out_bias"])[:, 0]


def corrupt(
    tokens: jax.Array, key: jax.Array, eos_id: int, pad_id: int
) -> tuple[jax.Array, jax.Array]:
    """One of its tokens repeated (up to three times more), its tokens shuffled, or one dropped:
    each with probability 1/3.

    Args:
      tokens: int [T], ended by EOS, then padding.

    Returns:
      tokens int [T], and whether they differ from those given, bool [].
    """
    length = tokens.shape[0]
    place = jnp.arange(tokens.shape[0])
    kind, where, times, order = jax.random.split(key, 4)
    n = jnp.argmax(tokens == eos_id)
    at = jax.random.randint(where, (), 0, jnp.maximum(n, 1))
    times = jax.random.randint(times, (), 1, 4)
    repeat = jnp.where(place <= at, place, jnp.maximum(at, place - times))
    shuffle = jnp.argsort(jnp.where(place < n, jax.random.uniform(order, (length,)), 1.0 + place))
    drop = jnp.where(place < at, place, place + 1)
    kind = jax.random.randint(kind, (), 0, 3)
    source = jnp.stack([repeat, shuffle, drop])[kind]
    end = jnp.clip(n + jnp.stack([times, 0, -1])[kind], 0, length - 1)
    new = jnp.where(
        place < end,
        tokens[jnp.minimum(source, length - 1)],
        jnp.where(place == end, eos_id, pad_id),
    ).astype(tokens.dtype)
    return new, (new != tokens).any()


def repeated(tokens: jax.Array, drawn: jax.Array) -> jax.Array:
    """Share of the drawn tokens [B, T] that their caption held before."""
    again = jnp.tril(tokens[:, :, None] == tokens[:, None, :], -1).any(-1) & drawn
    return again.sum() / jnp.maximum(drawn.sum(), 1).astype(jnp.float32)
