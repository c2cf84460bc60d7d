"""Does this text belong to this picture? A small classifier over pairs and drawn negatives."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import optax

from jaxvl.models.heads import HEADS, Head, HeadConfig
from jaxvl.nn.linear import Linear
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@HEADS.register("pair_matching")
@dataclasses.dataclass(frozen=True)
class PairMatchingConfig(HeadConfig):
    together: ClassVar[bool] = True
    batch_keys: ClassVar[tuple[str, ...]] = ("drawn/text_index",)
    reads: tuple[str, ...] = ("image", "text")

    def build(self, inputs, rngs, dtype=jnp.float32):
        return PairMatching(sum(inputs.values()), rngs, dtype)


class PairMatching(Head):
    def __init__(self, width, rngs, dtype):
        self.up = Linear(width, 32, axes=("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = Linear(32, 1, axes=("mlp", None), rngs=rngs, dtype=dtype)

    def __call__(self, encoded, batch, *, train, key, progress):
        image, text = (encoded[name].pooled for name in ("image", "text"))
        score = lambda a, b: self.down(jnp.tanh(self.up(jnp.concatenate([a, b], -1))))[:, 0]
        negative = text[batch["drawn/text_index"]]
        return {"true": score(image, text), "false": score(image, negative)}


@OBJECTIVES.register("pair_matching")
@dataclasses.dataclass(frozen=True)
class MatchingLoss(Objective):
    reads: ClassVar[tuple[str, ...]] = ("match/true", "match/false")

    def __call__(self, outputs, batch, state, context):
        parts = [(outputs["match/true"], 1.0), (outputs["match/false"], 0.0)]
        return Loss(sum(optax.sigmoid_binary_cross_entropy(x, y).mean() for x, y in parts)), state
