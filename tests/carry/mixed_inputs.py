"""Mixed pictures: every picture is blended with another one of its batch."""

import dataclasses

import jax

from jaxvl.before import BEFORE, Before


@BEFORE.register("blend")
@dataclasses.dataclass(frozen=True)
class Blend(Before):
    """x' = w x + (1 - w) x_partner, with w drawn from [low, 1] for each row."""

    low: float = 0.5

    def whole(self, batch, key):
        order, draw = jax.random.split(key)
        partner = jax.random.permutation(order, len(batch["position"]))
        weight = jax.random.uniform(draw, partner.shape, minval=self.low)
        return {
            "weight": weight,
            "image": batch["image"][partner],
            "position": batch["position"][partner],
        }

    def inputs(self, label, inputs, rows, prepare):
        partner = {name: rows[f"{label}/{name}"] for name in ("image", "position")}
        other = prepare({**rows, **partner})["image"]
        weight = rows[f"{label}/weight"][:, None, None, None]
        return {**inputs, "image": weight * inputs["image"] + (1 - weight) * other}
