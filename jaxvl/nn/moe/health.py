"""How well a router spreads its tokens, for the log."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvl.nn.moe.dispatch import Mixing
from jaxvl.nn.moe.losses import entropy
from jaxvl.nn.moe.router import Routing, Tokens

DEAD = 0.01  # an expert is dead whose share of the weight is below this part of an even share


def health_of(routing: Routing, tokens: Tokens) -> dict[str, jax.Array]:
    """Figures of one layer and batch, without gradient.

    Returns:
      load: each expert's share of the (token, expert) pairs that run; of soft routing, its share of
        the weight.
      load/MODALITY: the same within each modality, 0 where it has no token; only where tokens have
        one. Where experts choose within one modality it is even by construction, and the next one
        tells.
      weight/MODALITY: each expert's share of the routing weight of the modality's tokens, likewise.
      dropped: share of the tokens that no expert sees.
      overflow: share of the choices beyond an expert's capacity (token choice).
      entropy: mean over tokens of the entropy of their distribution over experts, in nats.
      dead: 1 for an expert with less than 1 % of an even share of the weight, else 0, float32 [E].
      Shares are float32 [E], the others float32 [].
    """
    mass, real, probs = (
        jax.lax.stop_gradient(a) for a in (routing.mass, tokens.real, routing.probs)
    )
    experts = mass.shape[-1]
    count = jnp.maximum(real.sum(), 1.0)
    runs = (mass if isinstance(routing.plan, Mixing) else mass > 0) * real[..., None]
    weight = (mass * real[..., None]).sum((0, 1))
    found = {
        "load": _shares(runs.sum((0, 1))),
        "dropped": (real * (runs.sum(-1) == 0)).sum() / count,
        "overflow": jax.lax.stop_gradient(routing.overflow),
        "entropy": (real * entropy(probs)).sum() / count,
        "dead": (_shares(weight) < DEAD / experts).astype(jnp.float32),
    }
    if tokens.modality is not None:
        for name, own in tokens.kinds().items():
            found |= {
                f"{key}/{name}": _shares((shared * own[..., None]).sum((0, 1)))
                for key, shared in (("load", runs), ("weight", mass))
            }
    return found


def _shares(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(x.sum(-1, keepdims=True), 1e-9)
