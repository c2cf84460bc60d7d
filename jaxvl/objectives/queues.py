"""Queues of earlier rows in an objective's state: the newest take the place of the oldest."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.data.config import DataConfig
from jaxvl.objectives import ObjectiveState


def check_room(queue: int, data: DataConfig) -> None:
    """Raises ConfigError at `queue` where it is shorter than a batch."""
    problem = f"{queue!r} rows have no room for a batch of {data.batch}"
    check(queue >= data.batch, "queue", problem)


def places() -> ObjectiveState:
    """What `enqueued` needs beside the queues: `place`, of the oldest row, and `filled`, how many
    places batches have reached; int32 []. The rows `arange(Q) < filled` are there."""
    return {"place": jnp.int32(0), "filled": jnp.int32(0)}


def enqueued(state: ObjectiveState, rows: Mapping[str, jax.Array]) -> ObjectiveState:
    """The state with `rows` [B, …] in the queues [Q, …] of these names, in place of the oldest.

    All queues have one length Q, which is at least B and need be no multiple of it. No gradient
    flows.
    """
    first = next(iter(rows))
    b = len(rows[first])
    size = len(state[first])
    at = (state["place"] + jnp.arange(b, dtype=jnp.int32)) % size
    queues = {
        name: state[name].at[at].set(jax.lax.stop_gradient(new)) for name, new in rows.items()
    }
    return {
        **state,
        **queues,
        "place": (state["place"] + b) % size,
        "filled": jnp.minimum(state["filled"] + b, size),
    }
