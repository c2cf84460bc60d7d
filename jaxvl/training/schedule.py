"""Which task runs at a step: pure functions of the step, so that every host agrees and a resume
continues exactly.

The comparison of PolyViT (Likhosherstov et al. 2021, section 3.3) in these names: task by task =
`stages`; alternating = `round_robin`; uniform sampling = `weighted` with equal weights; weighted
sampling = `weighted` with `weights="size"`; accumulating gradients = `summed`. IMP (Akbari et al.
2023): released loop = `round_robin` with intervals, text = `weighted`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np

from jaxvl.config import Range, Registry, Seed, Weight, check, nearest
from jaxvl.data.draws import Uniforms

SCHEDULES = Registry("schedule")
LONGEST_PERIOD = 1_000_000
Interval = Annotated[int, Range(1, 1_000_000)]  # rounds


class Turn(NamedTuple):
    """What one step runs.

    Attributes:
      tasks: one, or several whose weighted losses are summed.
      weights: of their losses.
    """

    tasks: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        return " + ".join(self.tasks)


class Turns(Protocol):
    """What a schedule's `build(tasks, total, sizes)` returns: step -> turn.

    Its arguments: names of the tasks, steps of the run, and batches in one epoch of each task, None
    while they are not known.

    Attributes:
      turns: all that may come.
    """

    turns: tuple[Turn, ...]

    def __call__(self, step: int) -> Turn: ...


class Alternating:
    """A sequence of single tasks. Subclasses say which: `task(step)` is an index into `tasks`."""

    def __init__(self, tasks: Sequence[str]):
        self.turns = tuple(Turn((t,)) for t in tasks)

    def __call__(self, step: int) -> Turn:
        return self.turns[self.task(step)]

    def task(self, step: int) -> int:
        raise NotImplementedError


@SCHEDULES.register("round_robin")
@dataclasses.dataclass(frozen=True)
class RoundRobin:
    """The tasks in turn, by name (IMP's released loop): in round r, every task whose interval
    divides r runs once.

    Attributes:
      intervals: task -> rounds between two of its steps; 1 for tasks not named.
    """

    intervals: dict[str, Interval] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for task, n in self.intervals.items():
            check(n >= 1, f"intervals.{task}", f"{n!r} must be >= 1 round")

    def build(
        self, tasks: Sequence[str], total: int, sizes: Mapping[str, float] | None = None
    ) -> RoundRobinSequence:
        _known(self.intervals, tasks, "intervals")
        period = math.lcm(*(self.intervals.get(t, 1) for t in tasks))
        problem = (
            f"together come round again after {period:,} rounds; must be at most "
            f"{LONGEST_PERIOD:,}, so choose ones that share factors"
        )
        check(period <= LONGEST_PERIOD, "schedule.intervals", problem)
        return RoundRobinSequence(tasks, [self.intervals.get(t, 1) for t in tasks])


class RoundRobinSequence(Alternating):
    """One period (the least common multiple of the intervals) is laid out once."""

    def __init__(self, tasks: Sequence[str], intervals: Sequence[int]):
        super().__init__(tasks)
        period = math.lcm(*intervals)
        self._period = [
            i for r in range(1, period + 1) for i, n in enumerate(intervals) if r % n == 0
        ]

    def task(self, step: int) -> int:
        return self._period[step % len(self._period)]


Curriculum = tuple[tuple[float, float], ...]  # (share of the run, weight)


@SCHEDULES.register("weighted")
@dataclasses.dataclass(frozen=True)
class Weighted:
    """A task drawn at random each step (IMP's text), by a pure function of (seed, step).

    A curriculum (Ola: each stage goes on with the tasks of the one before, at a reduced rate) gives
    points instead of a weight: `dict(pairs=((0, 1.0), (0.5, 0.2)), clips=((0, 0.0), (0.5, 0.8)))`.

    Attributes:
      weights: task -> weight, or (share of the run, weight) points in ascending order, the first at
        0; weights need not sum to 1, a task not named is never drawn. "size": the batches in one
        epoch of a task, so that the records of all tasks are seen equally often.
      between: between two points the weight stays as at the first (`hold`), or goes from one to the
        other (`linear`).
      seed: of the draws.
    """

    weights: Literal["size"] | dict[str, float | Curriculum]
    between: Literal["hold", "linear"] = "hold"
    seed: Seed = 0

    def __post_init__(self):
        for task, points in self._points().items():
            key = f"weights.{task}"
            shares = [share for share, _ in points]
            check(all(w >= 0 for _, w in points), key, f"{self.weights[task]!r} must be >= 0")
            check(
                bool(points) and shares[0] == 0,
                key,
                f"{self.weights[task]!r}: the first point must be at share 0 of the run",
            )
            check(
                shares == sorted(set(shares)) and shares[-1] <= 1,
                key,
                f"{self.weights[task]!r}: the shares must ascend and lie in [0, 1]",
            )

    def _points(self) -> dict[str, Curriculum]:
        given = {} if self.weights == "size" else self.weights
        return {task: w if isinstance(w, tuple) else ((0.0, w),) for task, w in given.items()}

    def build(
        self, tasks: Sequence[str], total: int, sizes: Mapping[str, float] | None = None
    ) -> WeightedSequence:
        if self.weights == "size":
            points = {t: ((0.0, 1.0 if sizes is None else float(sizes[t])),) for t in tasks}
        else:
            _known(self.weights, tasks, "weights")
            points = self._points()
        sequence = WeightedSequence(
            tasks, [points.get(t, ((0.0, 0.0),)) for t in tasks], total, self
        )
        for share in sorted({share for p in points.values() for share, _ in p}):
            some = sequence.weights(min(round(share * total), total - 1)).sum() > 0
            check(
                some,
                "schedule.weights",
                f"at share {share:g} of the run no task has a weight > 0 (tasks: "
                f"{', '.join(tasks)})",
            )
        return sequence


class WeightedSequence(Alternating):
    def __init__(
        self, tasks: Sequence[str], points: Sequence[Curriculum], total: int, config: Weighted
    ):
        super().__init__(tasks)
        self._starts = [[round(share * total) for share, _ in p] for p in points]
        self._values = [[w for _, w in p] for p in points]
        self._linear = config.between == "linear"
        self._draws = Uniforms(config.seed, "schedule", n=1)

    def weights(self, step: int) -> np.ndarray:
        """Of every task at `step`, float64."""
        if self._linear:
            values = [
                np.interp(step, starts, values)
                for starts, values in zip(self._starts, self._values)
            ]
        else:
            values = [
                values[np.searchsorted(starts, step, side="right") - 1]
                for starts, values in zip(self._starts, self._values)
            ]
        return np.array(values, np.float64)

    def task(self, step: int) -> int:
        weights = self.weights(step)
        draw = self._draws(np.array([step]))[0, 0]
        cumulative = np.cumsum(weights / weights.sum())
        return min(
            int(np.searchsorted(cumulative, draw, side="right")), int(np.flatnonzero(weights)[-1])
        )


@SCHEDULES.register("stages")
@dataclasses.dataclass(frozen=True)
class Stages:
    """One task after the other: a curriculum such as low resolution first.

    Attributes:
      shares: (task, share of the steps) in the order in which they run; the shares are normalised.
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self):
        check(bool(self.shares), "shares", "must name at least one task")
        for task, share in self.shares:
            check(share > 0, "shares", f"{task!r} has share {share!r}; must be > 0")

    def build(
        self, tasks: Sequence[str], total: int, sizes: Mapping[str, float] | None = None
    ) -> StagesSequence:
        _known([t for t, _ in self.shares], tasks, "shares")
        return StagesSequence(tasks, self.shares, total)


class StagesSequence(Alternating):
    def __init__(self, tasks: Sequence[str], shares: Sequence[tuple[str, float]], total: int):
        super().__init__(tasks)
        stages, parts = zip(*shares)
        self._stages = [tasks.index(t) for t in stages]
        self._ends = np.round(np.cumsum(parts) / sum(parts) * total).astype(int)

    def task(self, step: int) -> int:
        return self._stages[
            min(int(np.searchsorted(self._ends, step, side="right")), len(self._stages) - 1)
        ]


@SCHEDULES.register("summed")
@dataclasses.dataclass(frozen=True)
class Summed:
    """Every step takes a batch of every task and moves along the gradient of the weighted sum of
    their losses.

    Attributes:
      weights: task -> weight of its loss, > 0; 1 for tasks not named.
    """

    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for task, w in self.weights.items():
            check(
                w > 0,
                f"weights.{task}",
                f"{w!r} must be > 0 (leave out the task that shall not count)",
            )

    def build(
        self, tasks: Sequence[str], total: int, sizes: Mapping[str, float] | None = None
    ) -> SummedSequence:
        _known(self.weights, tasks, "weights")
        return SummedSequence(
            Turn(tuple(tasks), tuple(float(self.weights.get(t, 1.0)) for t in tasks))
        )


class SummedSequence:
    def __init__(self, turn: Turn):
        self.turns = (turn,)

    def __call__(self, step: int) -> Turn:
        return self.turns[0]


def _known(named: Iterable[str], tasks: Sequence[str], key: str) -> None:
    for name in named:
        check(
            name in tasks,
            f"schedule.{key}.{name}",
            f"no such task{nearest(name, tasks)} (tasks: {', '.join(tasks)})",
        )
