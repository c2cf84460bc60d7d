"""Outputs of a teacher, as targets for the model that is trained."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax

from jaxvl.before import BEFORE, Arrays, Before, Models
from jaxvl.config import NonEmpty, check


@BEFORE.register("teach")
@dataclasses.dataclass(frozen=True)
class Teach(Before):
    """Puts named outputs of a teacher's call into the batch, as `LABEL/OUTPUT`.

    The teacher reads the same model inputs as the student: the same augmentation, the same masks.

    Attributes:
      teacher: key of the config's `teachers`; None: the model that is trained, as it is in
        evaluation.
      outputs: names of the teacher's outputs that have one row for each row of the batch.
      encode: options of the teacher's call, as a task's `encode`: class heads of `imp`.
    """

    teacher: Annotated[str, NonEmpty("a key of teachers")] | None
    outputs: tuple[str, ...] = ("image", "text")
    encode: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check(bool(self.outputs), "outputs", "must name at least one output of the teacher")

    @property
    def teachers(self) -> tuple[str, ...]:
        return () if self.teacher is None else (self.teacher,)

    def rows(self, models: Models, inputs: Arrays, keys: jax.Array) -> dict[str, jax.Array]:
        del keys
        model = models.student if self.teacher is None else models[self.teacher]
        found = model.apply(inputs, method="__call__", **self.encode)
        for name in self.outputs:
            check(
                name in found,
                "outputs",
                f"{name!r} is no output of the teacher {self.teacher!r} (there are: "
                f"{', '.join(sorted(found))})",
            )
        return {name: found[name] for name in self.outputs}
