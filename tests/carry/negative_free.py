"""Two views of a picture that must agree, without negatives."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("negative_free")
@dataclasses.dataclass(frozen=True)
class NegativeFree(Objective):
    """- cos(predictor(z1), sg(z2)), both ways (Chen & He 2020, arXiv 2011.10566)."""

    reads: ClassVar[tuple[str, ...]] = tuple(
        f"{head}/{view}" for head in ("projector", "predictor") for view in ("image", "image_2")
    )

    def __call__(self, outputs, batch, state, context):
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        total = 0.0
        for one, other in (("image", "image_2"), ("image_2", "image")):
            target = jax.lax.stop_gradient(unit(outputs[f"projector/{other}"]))
            total -= jnp.sum(unit(outputs[f"predictor/{one}"]) * target, -1).mean() / 2
        return Loss(total), state
