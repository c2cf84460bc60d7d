"""Auxiliary losses of mixtures of experts, and the health of their routers in the log."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.config import check, nearest
from jaxvl.objectives import OBJECTIVES, Loss

HEALTH = ("dropped", "overflow", "entropy", "dead")


@OBJECTIVES.register("routing")
@dataclasses.dataclass(frozen=True)
class Routing:
    """Weighted sum of what the model's MoE layers give as losses; without weights (expert choice needs none) the log alone.

    Reads `moe/LOSS`: Float[Array, "B"], the same for every row (of a microbatch); `moe_health/…`, see `nn.moe.health.health_of`.

    Attributes:
      weights: loss -> weight, as in `dict(balance=0.01, z=1e-3)`.
    """

    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    batch_keys: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for name, weight in self.weights.items():
            check(weight >= 0, f"weights.{name}", f"{weight!r} must be >= 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return (*(f"moe/{name}" for name in self.weights), *(f"moe_health/{name}" for name in (*HEALTH, "load")))

    def init_aux(self) -> tuple[()]:
        return ()

    def __call__(self, outputs, batch, aux, key):
        del batch, key
        losses = {k.removeprefix("moe/"): v.mean() for k, v in outputs.items() if k.startswith("moe/")}
        if missing := [name for name in self.weights if name not in losses]:
            raise ValueError(
                f"weights: the router has no loss {missing[0]!r}{nearest(missing[0], list(losses))} (losses: {', '.join(losses)})"
            )
        health = {k: jax.lax.stop_gradient(outputs[f"moe_health/{k}"].mean(0)) for k in (*HEALTH, "load")}
        metrics = {**losses, **{k: health[k].mean() for k in HEALTH}, "largest_load": health["load"].max() * health["load"].shape[-1]}
        return Loss(sum((w * losses[k] for k, w in self.weights.items()), jnp.float32(0)), metrics), aux
