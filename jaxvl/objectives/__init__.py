"""Objectives: pure functions of the encoders' outputs, one file each, chosen by name.

An objective is a registered frozen dataclass that extends `Objective`:

    @OBJECTIVES.register("my_loss")
    @dataclasses.dataclass(frozen=True)
    class MyLoss(Objective):
        margin: float = 0.2                                        # an option of the config
        reads: ClassVar[tuple[str, ...]] = ("image", "text")       # outputs of the model

        def __call__(self, outputs, batch, state, context):
            return Loss(...), state

An objective knows nothing of models, optimisers or meshes. The outputs are those of the whole
batch, wherever they lie. What it needs of another model's weights comes from hooks (`before`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays, Tree
from jaxvl.config import Registry
from jaxvl.data.config import DataConfig

OBJECTIVES = Registry("objective", __name__)

Points = tuple[tuple[float, float], ...]  # (step, value)
# What an objective keeps from step to step: name -> array, or a tree of arrays.
ObjectiveState = dict[str, Tree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """What an objective gives back.

    Attributes:
      value: Float[""], to be minimised.
      metrics: name -> Float[""], for the log only.
    """

    value: jax.Array
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Context:
    """Where in the run a step stands.

    Attributes:
      key: random key of this step and this objective.
      step: steps taken before this one, int32 [].
      progress: share of the run's steps that are done, float32 [], in [0, 1).
    """

    key: jax.Array
    step: jax.Array
    progress: jax.Array

    def at(self, value: float | Points) -> float | jax.Array:
        """A number at this step: itself, or read from points (step, value) with straight lines
        between them."""
        if isinstance(value, (int, float)):
            return value
        steps, values = zip(*value)
        return jnp.interp(
            self.step.astype(jnp.float32), jnp.asarray(steps, jnp.float32), jnp.asarray(values)
        )


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """The shapes that an objective's state may depend on.

    Attributes:
      outputs: of the model and of `Objective.per_row`, for the whole batch.
      batch: entries of the whole batch, those of hooks too.
      steps: steps of the run.
    """

    outputs: Mapping[str, jax.ShapeDtypeStruct]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    steps: int


class Objective:
    """Base of objectives.

    Attributes:
      reads: names of the model outputs that it needs.
      batch_keys: names of the batch entries that it needs.
      state_axes: logical axes of the arrays in its state that are sharded, by name:
        `{"queue": ("queue", None)}`. All others are on every device.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    batch_keys: ClassVar[tuple[str, ...]] = ()
    state_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}

    @property
    def keeps_state(self) -> bool:
        """Whether something goes from step to step. Such a task shares its compiled step with no
        other."""
        return type(self).init_state is not Objective.init_state

    def init_state(self, spec: StateSpec) -> ObjectiveState:
        """The state before the first step: name -> array, or a tree of arrays. It is saved in
        checkpoints."""
        del spec
        return {}

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError where the objective's options do not go with the task's data."""

    def per_row(self, outputs: Arrays, inputs: Arrays) -> dict[str, jax.Array]:
        """Arrays [B, ...] that `__call__` then finds among its outputs.

        It runs on some rows of the batch, as they are encoded. It sees the prepared pictures, which
        `__call__` does not.

        Args:
          outputs: of the model, of these rows.
          inputs: model inputs of the same rows.
        """
        del outputs, inputs
        return {}

    def __call__(
        self, outputs: Arrays, batch: Arrays, state: ObjectiveState, context: Context
    ) -> tuple[Loss, ObjectiveState]:
        """The loss of the whole batch, and the state after it.

        Args:
          outputs: of the model, by name.
          batch: as the loader gives it, without pictures; and what hooks add.
          state: as `init_state` makes it.
        """
        raise NotImplementedError
