"""Class prototypes that follow the embeddings of their class."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("prototypes")
@dataclasses.dataclass(frozen=True)
class Prototypes(Objective):
    """- log softmax(z . c / t) of the own class; c: moving average of the class's embeddings."""

    classes: int
    decay: float = 0.9
    temperature: float = 0.1

    reads: ClassVar[tuple[str, ...]] = ("image",)
    batch_keys: ClassVar[tuple[str, ...]] = ("group_id",)
    state_axes: ClassVar[dict] = {"centres": ("prototypes", None)}

    def init_state(self, spec):
        shape = (self.classes, spec.outputs["image"].shape[-1])
        return {"centres": jax.random.normal(jax.random.key(0), shape)}

    def __call__(self, outputs, batch, state, context):
        image = outputs["image"]
        own = jax.nn.one_hot(batch["group_id"] % self.classes, self.classes)
        count = own.sum(0)[:, None]
        mean = own.T @ jax.lax.stop_gradient(image) / jnp.maximum(count, 1)
        centres = jnp.where(
            count > 0, self.decay * state["centres"] + (1 - self.decay) * mean, state["centres"]
        )
        norm = jnp.linalg.norm(state["centres"], axis=1, keepdims=True)
        log_p = jax.nn.log_softmax(image @ (state["centres"] / norm).T / self.temperature)
        return Loss(-(own * log_p).sum(1).mean()), {"centres": centres}
