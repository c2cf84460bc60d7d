"""Teachers: weights beside those that are trained, which hooks read and no gradient reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays, Weights
from jaxvl.config import PathText, Range, check
from jaxvl.models.functional import Functional
from jaxvl.objectives import Context, Points

Decay = Annotated[float, Range(0.0, 1.0)]
_Step = Annotated[int, Range(0, 2**31 - 1)]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Where a teacher's weights come from.

    Attributes:
      source: `ema`, a moving average of the weights that are trained; `initial`, the weights that
        the run began with; or the workdir of another run or of `jaxvl.convert`, whose tokenizer and
        preprocessing must be this run's.
      decay: of `ema`: t <- decay t + (1 - decay) w after every step (MoCo, ALBEF: 0.995). Points
        (step, decay) let it change over the run. None: the average that `optim.ema` keeps.
    """

    source: PathText = "ema"
    decay: Decay | tuple[tuple[_Step, Decay], ...] | None = None

    def __post_init__(self):
        check(
            self.decay is None or self.source == "ema",
            "decay",
            f"{self.decay!r} is of source='ema'; {self.source!r} is not averaged, so it must be "
            f"None",
        )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher of a run.

    Attributes:
      model: the functions that its weights belong to.
    """

    source: str
    decay: float | Points | None
    model: Functional

    @property
    def is_run_average(self) -> bool:
        """Whether its weights are those of `TrainState.ema`, of which no second copy is kept."""
        return self.source == "ema" and self.decay is None

    @property
    def follows(self) -> bool:
        """Whether it keeps an average of its own."""
        return self.source == "ema" and self.decay is not None

    def fresh(self, params: Arrays, model_state: Arrays) -> Weights | tuple[()]:
        """Its weights in a fresh state of a model with `params` and `model_state`.

        Those of a workdir are random here; `restore.seat_teachers` puts the right ones in.
        """
        if self.is_run_average:
            return ()
        if self.source in ("ema", "initial"):
            return jax.tree.map(jnp.copy, (params, model_state))
        return self.model.init(jax.random.key(0))


def update_teachers(
    teachers: Mapping[str, Teacher],
    weights: Mapping[str, Weights],
    student: Weights,
    context: Context,
) -> dict[str, Weights]:
    """The teachers' weights after a step of the student; those that keep no average are as they
    were."""
    new = dict(weights)
    for name, teacher in teachers.items():
        if teacher.follows:
            decay = jnp.float32(context.at(teacher.decay))
            pairs = zip(weights[name], student)
            new[name] = tuple(moving_average(old, now, decay) for old, now in pairs)
    return new


def moving_average(old: Arrays, now: Arrays, decay: jax.Array) -> Arrays:
    """`decay old + (1 - decay) now` for the paths of `old`; what is counted or drawn is taken
    over."""
    averaged = {}
    for path, value in old.items():
        if jnp.issubdtype(value.dtype, jnp.floating):
            step = (1 - decay).astype(value.dtype)
            averaged[path] = value + step * (now[path] - value)
        else:
            averaged[path] = now[path]
    return averaged
