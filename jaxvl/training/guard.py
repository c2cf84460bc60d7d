"""Guards: a step with a non-finite loss or a gradient spike is not applied, is counted, and k of
them in a row end the run.

The judgement is made on the device, inside the step; the host only reads the counters when it reads
the metrics.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import Steps, check
from jaxvl.training.state import GuardState


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had to be skipped."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is not applied.

    Attributes:
      spike: skip if the gradient's norm exceeds this multiple of the moving average of accepted
        norms; None: never.
      patience: accepted steps before the average counts as known.
      stop_after: skipped steps in a row, of one task, that end the run.
    """

    spike: float | None = 20.0
    patience: Steps = 100
    stop_after: Steps = 10

    def __post_init__(self):
        check(self.spike is None or self.spike > 1, "spike", f"{self.spike!r} must be > 1, or None")
        check(self.patience >= 1, "patience", f"{self.patience!r} must be >= 1 step")
        check(self.stop_after >= 1, "stop_after", f"{self.stop_after!r} must be >= 1 step")


def judge(
    config: GuardConfig, state: GuardState, loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, GuardState]:
    """Whether to apply the step (bool []), and the counters after it.

    Args:
      loss, norm: loss and global gradient norm, float [].
    """
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    if config.spike is not None:
        ok &= (state.accepted < config.patience) | (norm <= config.spike * state.typical_norm)
    accepted = state.accepted + ok
    weight = jnp.maximum(
        0.02, 1.0 / jnp.maximum(accepted, 1)
    )  # plain mean first, then a window of about 50 steps
    typical = jnp.where(
        ok, state.typical_norm + weight * (norm - state.typical_norm), state.typical_norm
    )
    return ok, GuardState(
        state.skipped + ~ok,
        jnp.where(ok, 0, state.in_a_row + 1),
        typical.astype(jnp.float32),
        accepted,
    )


def check_metrics(config: GuardConfig, step: int, task: str, metrics: dict[str, float]) -> None:
    """Ends the run where `metrics` tell of too many skipped steps in a row.

    Raises:
      TrainingDiverged: naming task and step.
    """
    if metrics["skipped_in_a_row"] >= config.stop_after:
        raise TrainingDiverged(
            f"task {task!r}, step {step}: {int(metrics['skipped_in_a_row'])} steps in a row "
            f"had a non-finite loss or a gradient "
            f"spike (loss {metrics['loss']:.4g}, gradient norm "
            f"{metrics['norm/gradient']:.4g}); the state is that of the last good "
            "step and is saved. Lower optim.lr, raise optim.warmup, or look at the data of "
            "this task."
        )
