"""Momentum contrast: a queue of a slow teacher's text embeddings gives further negatives."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.objectives.queues import check_room, enqueued, places


@OBJECTIVES.register("momentum_queue")
@dataclasses.dataclass(frozen=True)
class MomentumQueue(Objective):
    """Image to text over the batch and a queue [Q, D] (He et al. 2020, arXiv 1911.05722)."""

    queue: int = 32

    reads: ClassVar[tuple[str, ...]] = ("image", "log_scale")
    batch_keys: ClassVar[tuple[str, ...]] = ("momentum/text",)
    state_axes: ClassVar[dict] = {"queue": ("queue", None)}

    def check_data(self, data):
        check_room(self.queue, data)

    def init_state(self, spec):
        width = spec.batch["momentum/text"].shape[-1]
        return {"queue": jnp.zeros((self.queue, width)), **places()}

    def __call__(self, outputs, batch, state, context):
        new = batch["momentum/text"]
        keys = jnp.concatenate([new, state["queue"]])
        logits = jnp.exp(outputs["log_scale"]) * outputs["image"] @ keys.T
        empty = jnp.arange(len(keys)) >= len(new) + state["filled"]
        log_p = jax.nn.log_softmax(jnp.where(empty, -jnp.inf, logits))
        loss = -jnp.diagonal(log_p).mean()
        state = enqueued(state, {"queue": new})
        return Loss(loss, {"filled": state["filled"]}), state
