"""Auxiliary losses of a model's routers, weighed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.scipy.special import entr

from jaxvl.config import Weight, check
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("routing")
@dataclasses.dataclass(frozen=True)
class RoutingLosses(Objective):
    """sum_n w_n l_n over losses of the MoE layers (`nn.moe.losses`), and the routers' health for
    the log.

    Reads  moe/loss/NAME: Float[Array, "B"], of each example's share of the batch, equal in all rows
    of it;
           moe/health/NAME: Float[Array, "B L ..."], likewise, where the model gives them
             (`nn.moe.health`).
    So that a batch that is encoded in parts gives the mean over its parts.

    Logs, as means over the L layers: the losses; `dropped`, `overflow`, `entropy`; `dead`, a number
    of experts, summed over the layers; `load/EXPERT`, its entropy `load_entropy` in nats and its
    largest value over an even share, `load_most`; where tokens have a modality,
    `load_entropy/MODALITY` and `weight/MODALITY/EXPERT`, the expert's share of the routing weight
    of the modality's tokens.

    Attributes:
      losses: name -> weight, as in `dict(balance=0.01, z=1e-3)`; none: for the log alone (expert
        choice needs no loss).
    """

    losses: dict[str, Weight] = dataclasses.field(default_factory=dict)

    batch_keys: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for name, weight in self.losses.items():
            check(weight >= 0, f"losses.{name}", f"{weight!r} must be >= 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(f"moe/loss/{name}" for name in self.losses)

    def __call__(self, outputs, batch, state, context):
        del batch, context
        values = {name: outputs[f"moe/loss/{name}"].mean() for name in self.losses}
        total = sum((self.losses[name] * v for name, v in values.items()), jnp.float32(0))
        health = {
            k.removeprefix("moe/health/"): v.mean(0)
            for k, v in outputs.items()
            if k.startswith("moe/health/")
        }
        metrics = dict(values) | {
            k: health[k].mean() for k in ("dropped", "overflow", "entropy") if k in health
        }
        if "load" in health:
            load = health["load"]  # [L, E]
            metrics |= {
                "dead": health["dead"].sum(),
                "load_entropy": entr(load).sum(-1).mean(),
                "load_most": load.max() * load.shape[-1],
            }
            metrics |= {f"load/{e}": load[:, e].mean() for e in range(load.shape[-1])}
        for name, shares in health.items():  # [L, E]
            if name.startswith("load/"):
                metrics[name.replace("load/", "load_entropy/")] = entr(shares).sum(-1).mean()
            elif name.startswith("weight/"):
                metrics |= {f"{name}/{e}": shares[:, e].mean() for e in range(shares.shape[-1])}
        return Loss(total, metrics), state
