"""Labels from the web, cleaned by prototypes of the classes (CAPro)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvl.config import Count, Range, Scale, Weight, check
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.objectives.queues import check_room, enqueued, places

Share = Annotated[float, Range(0.0, 1.0)]


@OBJECTIVES.register("capro")
@dataclasses.dataclass(frozen=True)
class Capro(Objective):
    """Classification with noisy labels y, and visual prototypes that correct them (CAPro, Qin et
    al. 2023, arXiv 2310.09761).

    Until `warmup`, the class head learns the given labels, and prototypes are made of clean seeds,
    which the job `text_seeds` finds by their texts. From then on, with z the projected pictures, p
    the class head's probabilities and c the prototypes:

        r_i     = alpha p_i + (1 - alpha) softmax_c(z_i . c / tau)
        y'_i    = argmax r_i where max r_i >= threshold; else y_i where r_i(y_i) >= 1 / C;
                  else i is dropped; seeds keep y_i
        L_cls   = mean_i ((1 - beta) CE(p_i, y'_i) + beta CE(p_i, q_i))
        q_i     = sum_k softmax_k(z_i . Q_k / tau) r_k                       collective bootstrapping
        L_proto = mean_i -log softmax_c(z_i . c / tau)_{y'_i}
        L_inst  = mean over all rows of -log (e_i / (e_i + sum_k exp(z_i . Q_k / tau))),
                  e_i = exp(z_i . z'_i / tau)
        L       = L_cls + prototype L_proto + instance L_inst

    Means are over the rows that are not dropped. z' are the teacher's rows, of this picture or of
    another view of it; after L_inst they take the place of the queue's oldest. After the loss each
    row that is not dropped moves its class's prototype, one after the other, c = m c + (1 - m) z;
    then all are scaled to length 1. In the warm-up rows that are no seeds move nothing, and the
    prototypes are scaled where they are read and at its end, so that they are means of the
    seeds. L_inst is
    in the warm-up too.

    Of the release are left out: its second classifier of z, the loss that maps z back, weights of
    rows, several labels a row. A queue's p is the teacher's of when the row came (the release takes
    its second classifier of now); its weights are the paper's softmax, not clipped cosines. Classes
    without a seed do not compete until they have a row, and add nothing to L_proto.

    Reads `projected`: Float[Array, "B D"], unit rows (the head `projection`); `logits/HEAD`:
    Float[Array, "B C"]; from the batch `label`: Int[Array, "B"], < 0: none; `seed`: Int[Array,
    "B"], > 0: a seed; of a hook `teach` `TEACHER/KEY`: Float[Array, "B D"] and
    `TEACHER/logits/HEAD`.

    State: prototypes: Float[Array, "C D"]; visited: Int[Array, "C"]; queue: Float[Array, "Q D"] and
    queue_p: Float[Array, "Q C"], sharded by rows; place, filled: Int[Array, ""].

    Attributes:
      head: name of the class head.
      projected: z.
      label, seed: batch entries; without `seed` every row is one in the warm-up and none later.
      teacher: label of the hook; key: the teacher's output that z' is; None: `projected`.
      queue: Q (the release: 8,192).
      decay: m, 0.999.
      temperature: tau, 0.1.
      alpha: 0.5.
      threshold: 0.6.
      bootstrap: beta, 0.1.
      warmup: share of the run (the release: 10 of 90 epochs).
      prototype, instance: weights, 1.
    """

    head: str
    projected: str = "projected"
    label: str = "class_label"
    seed: str | None = "seed"
    teacher: str = "momentum"
    key: str | None = None
    queue: Count = 8192
    decay: Share = 0.999
    temperature: Scale = 0.1
    alpha: Share = 0.5
    threshold: Share = 0.6
    bootstrap: Share = 0.1
    warmup: Share = 0.11
    prototype: Weight = 1.0
    instance: Weight = 1.0

    state_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "prototypes": ("prototypes", None),
        "queue": ("queue", None),
        "queue_p": ("queue", None),
    }

    def __post_init__(self):
        for name in ("decay", "alpha", "threshold", "bootstrap", "warmup"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, f"{value!r} must be in [0, 1]")
        check(self.temperature > 0, "temperature", f"{self.temperature!r} must be > 0")

    def check_data(self, data):
        check_room(self.queue, data)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.projected, f"logits/{self.head}")

    @property
    def batch_keys(self) -> tuple[str, ...]:
        seed = () if self.seed is None else (self.seed,)
        return (self.label, *seed, self._key, f"{self.teacher}/logits/{self.head}")

    @property
    def _key(self) -> str:
        return f"{self.teacher}/{self.key or self.projected}"

    def init_state(self, spec):
        width = spec.outputs[self.projected].shape[-1]
        classes = spec.outputs[f"logits/{self.head}"].shape[-1]
        return {
            "prototypes": jnp.zeros((classes, width), jnp.float32),
            "visited": jnp.zeros(classes, jnp.int32),
            "queue": jnp.zeros((self.queue, width), jnp.float32),
            "queue_p": jnp.zeros((self.queue, classes), jnp.float32),
            **places(),
        }

    def __call__(self, outputs, batch, state, context):
        z = outputs[self.projected].astype(jnp.float32)
        logits = outputs[f"logits/{self.head}"].astype(jnp.float32)
        given = batch[self.label].astype(jnp.int32)
        none = jnp.zeros(len(given), bool)
        seeds = none if self.seed is None else batch[self.seed] > 0
        started = context.progress >= self.warmup
        scores = self._scores(z, state)
        rated = self.alpha * jax.nn.softmax(logits) + (1 - self.alpha) * jax.nn.softmax(scores)
        rule = clean(jax.lax.stop_gradient(rated), given, seeds, self.threshold)
        known = given >= 0
        label = jnp.where(started, rule.label, given)
        kept = jnp.where(started, rule.kept, known)
        weight = kept / jnp.maximum(kept.sum(), 1)

        new = self._enqueued(batch, state)
        hard = optax.softmax_cross_entropy(logits, jax.nn.one_hot(label, logits.shape[1]))
        soft = optax.softmax_cross_entropy(
            logits, jax.lax.stop_gradient(self._bootstrapped(z, new))
        )
        beta = jnp.where(started, self.bootstrap, 0.0)
        classified = jnp.sum(weight * ((1 - beta) * hard + beta * soft))
        near = optax.softmax_cross_entropy(scores, jax.nn.one_hot(label, logits.shape[1]))
        near = jnp.where(state["visited"][label] > 0, near, 0.0)
        prototype = jnp.where(started, jnp.sum(weight * near), 0.0)
        instance = self._instance(z, batch, state)
        loss = classified + self.prototype * prototype + self.instance * instance

        first = seeds & known if self.seed is not None else known
        movers = jnp.where(started, rule.kept, first)
        moved = self._moved(jax.lax.stop_gradient(z), label, movers, state, started)
        rows = jnp.maximum(known.sum(), 1)
        metrics = {
            "classification": classified,
            "prototype": prototype,
            "instance": instance,
            "kept": kept.sum() / rows,
            "relabelled": (kept & (label != given)).sum() / rows,
            "accuracy": jnp.sum(weight * (logits.argmax(1) == label)),
        }
        return Loss(loss, jax.lax.stop_gradient(metrics)), {**new, **moved}

    def _scores(self, rows: jax.Array, state: dict[str, Any]) -> jax.Array:
        """Rows [N, D] . c / tau, [N, C]; -inf-like of classes that have no prototype, unless none
        has one."""
        scores = rows @ _unit(state["prototypes"]).T / self.temperature
        there = state["visited"] > 0
        return jnp.where(there | ~there.any(), scores, _NEVER)

    def _bootstrapped(self, z: jax.Array, state: dict[str, Any]) -> jax.Array:
        """q, float32 [B, C], of the queue with the batch in it."""
        rated = self.alpha * state["queue_p"]
        rated += (1 - self.alpha) * jax.nn.softmax(self._scores(state["queue"], state))
        return jax.nn.softmax(self._queue_scores(z, state)) @ rated

    def _queue_scores(self, z: jax.Array, state: dict[str, Any]) -> jax.Array:
        """z . Q / tau, [B, Q]; -inf-like of places that no batch has reached."""
        there = jnp.arange(self.queue) < state["filled"]
        return jnp.where(there, z @ state["queue"].T / self.temperature, _NEVER)

    def _instance(self, z: jax.Array, batch, state: dict[str, Any]) -> jax.Array:
        own = jnp.sum(z * batch[self._key], 1, keepdims=True) / self.temperature
        scores = jnp.concatenate([own, self._queue_scores(z, state)], 1)
        return -jax.nn.log_softmax(scores)[:, 0].mean()

    def _enqueued(self, batch, state: dict[str, Any]) -> dict[str, Any]:
        """The state with the teacher's rows in it, in place of the oldest."""
        keys = batch[self._key].astype(jnp.float32)
        p = jax.nn.softmax(batch[f"{self.teacher}/logits/{self.head}"].astype(jnp.float32))
        return enqueued(state, {"queue": keys, "queue_p": p})

    def _moved(
        self,
        z: jax.Array,
        label: jax.Array,
        movers: jax.Array,
        state: dict[str, Any],
        started: jax.Array,
    ) -> dict[str, jax.Array]:
        """Prototypes after the rows `movers`, bool [B], and how often each class was visited."""
        own = jax.nn.one_hot(label, len(state["visited"])) * movers[:, None]
        count = own.sum(0)
        later = jnp.sum(own * (count - jnp.cumsum(own, 0)), 1)  # rows of its class after a row
        share = (1 - self.decay) * self.decay**later
        held = state["prototypes"]
        held = jnp.where(started, _unit(held), held)
        begun = held * self.decay ** count[:, None]
        moved = begun + (own * share[:, None]).T @ z
        return {
            "prototypes": jnp.where(started, _unit(moved), moved),
            "visited": state["visited"] + count.astype(jnp.int32),
        }


class Cleaned(NamedTuple):
    """label: int [B], as it is given or corrected; kept: bool [B], whether the row counts."""

    label: jax.Array
    kept: jax.Array


def clean(rated: jax.Array, label: jax.Array, seeds: jax.Array, threshold: float) -> Cleaned:
    """Keeps, corrects or drops labels.

    Args:
      rated: float [B, C], r of every class.
      label: int [B]; < 0: none, which is corrected or dropped.
      seeds: bool [B], rows that keep their label.
      threshold: of a correction.
    """
    seeds = seeds & (label >= 0)
    own = jnp.take_along_axis(rated, jnp.maximum(label, 0)[:, None], 1)[:, 0]
    stays = seeds | ((label >= 0) & (own >= 1 / rated.shape[1]))
    sure = (rated.max(1) >= threshold) & ~seeds
    return Cleaned(jnp.where(sure, rated.argmax(1), label).astype(label.dtype), stays | sure)


_NEVER = -1e9  # a score; far below any other, and finite


def _unit(rows: jax.Array) -> jax.Array:
    """`l2_normalize` of rows that are classes, whose sharding is not the batch's."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(1, keepdims=True), 1e-24))
