"""Objectives: pure functions of the encoders' outputs, one file each, chosen by name.

An objective is a registered frozen dataclass that extends `Objective`:

    @OBJECTIVES.register("my_loss")
    @dataclasses.dataclass(frozen=True)
    class MyLoss(Objective):
        margin: float = 0.2                                        # an option of the config
        reads: ClassVar[tuple[str, ...]] = ("image", "text")       # outputs of the model

        def __call__(self, outputs, batch, state, context):
            return Loss(...), state

    c.plugins = ("my_loss.py",)                                    # beside the config
    c.tasks.pairs.objectives = dict(my_loss=dict(weight=0.5, margin=0.1))

An objective knows nothing of models, optimisers or meshes. The outputs are those of the whole
batch, wherever they lie. What it needs of another model's weights comes from hooks (`before`).
A loss of all pairs of a batch is `jaxvl.kernels.contrastive.contrastive_loss`, which holds no
matrix of them. A queue of earlier rows is `jaxvl.objectives.queues`. A whole example with a queue
and a teacher is `tests/carry/momentum_queue.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays, Tree
from jaxvl.config import Registry
from jaxvl.data.config import DataConfig

OBJECTIVES = Registry("objective", __name__)

Points = tuple[tuple[float, float], ...]  # (step, value)
Masks = Literal["no", "by batch", "by output"]
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


def whole_rows(outputs: Arrays, batch: Arrays, names: Iterable[str]) -> jax.Array | None:
    """Rows that lack none of some inputs, bool [B]; None where all rows have all.

    Args:
      names: batch entries, which `has_NAME` of the batch tells of, or modalities, which `has/NAME`
        of the outputs does.
    """
    told = []
    for name in names:
        for given, key in ((batch, f"has_{name}"), (outputs, f"has/{name}")):
            if key in given:
                told.append(given[key])
    return functools.reduce(operator.and_, told) if told else None


class Objective:
    """Base of objectives.

    Attributes:
      reads: names of the model outputs that it needs. Of two towers these are `image`, `text` and
        each of `model.views`, unit rows, `log_scale`, and what heads add: `LABEL`, or `LABEL/INPUT`
        of one that reads several.
      batch_keys: names of the batch entries that it needs: what `data.fields` fills, and hooks. A
        picture is seen by `per_row` alone.
      masks_missing: whether it leaves out rows that lack an input (`data.missing="mask"`): no; as
        the batch says; or as outputs say, of models that tell (`Capabilities.reports_missing`).
      state_axes: logical axes of the arrays in its state that are sharded, by name:
        `{"queue": ("queue", None)}`. All others are on every device. Names of axes are those of
        `jaxvl.sharding.rules.RULES`: rows of a `queue` lie over the batch's mesh axes, `prototypes`
        over those of tensors. None, or one that the mesh does not divide, lies whole everywhere.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    batch_keys: ClassVar[tuple[str, ...]] = ()
    masks_missing: ClassVar[Masks] = "no"
    state_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}

    @property
    def keeps_state(self) -> bool:
        """Whether something goes from step to step. Such a task shares its compiled step with no
        other."""
        return type(self).init_state is not Objective.init_state

    @property
    def reads_rows(self) -> bool:
        """Whether it takes something from single rows, whose pictures it then sees."""
        return type(self).per_row is not Objective.per_row

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
        """The loss of the whole batch, and the state after it, whose arrays have the names, shapes
        and dtypes that `init_state` gave them. No gradient flows from one step to the next, and a
        step that the guard skips leaves the state as it was.

        Args:
          outputs: of the model, by name.
          batch: as the loader gives it, without pictures; and what hooks add.
          state: as `init_state` makes it.
        """
        raise NotImplementedError
