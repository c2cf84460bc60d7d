"""What objectives with a momentum teacher's soft targets share."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Range, check
from jaxvl.objectives import Context, Objective

Share = Annotated[float, Range(0.0, 1.0)]


@dataclasses.dataclass(frozen=True)
class Distilled(Objective):
    """Base of objectives whose targets are `(1 - alpha) hard + alpha soft`, soft ones of a teacher
    (momentum distillation of ALBEF, Li et al. 2021, arXiv 2107.07651, section 3.4).

    Attributes:
      alpha: share of the soft targets (the paper: 0.4).
      ramp: share of the run in which alpha grows from 0, linearly (the paper: the first of 30
        epochs); 0: alpha is the same throughout.
    """

    alpha: Share = 0.4
    ramp: Share = 1 / 30

    def __post_init__(self):
        for name in ("alpha", "ramp"):
            value = vars(self)[name]
            check(0 <= value <= 1, name, f"{value!r} is a share; must be in [0, 1]")

    def soft_share(self, context: Context) -> jax.Array:
        """alpha at this step, float32 []."""
        if not self.ramp:
            return jnp.float32(self.alpha)
        return self.alpha * jnp.minimum(context.progress / self.ramp, 1.0)

    def mixed(self, hard: jax.Array, soft: jax.Array, context: Context) -> jax.Array:
        """The loss of mixed targets from the losses of hard and of soft ones, in which
        cross-entropy is linear."""
        share = self.soft_share(context)
        return (1 - share) * hard + share * soft
