"""Which task runs at a step: pure functions of the step, so that every host agrees and a resume continues exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvl.config import Registry, check, nearest

# A schedule's `build(tasks, total)` takes the names of the tasks and the number of steps of the run, and returns
# `sequence(step) -> task`.
SCHEDULES = Registry("schedule")


@SCHEDULES.register("round_robin")
@dataclasses.dataclass(frozen=True)
class RoundRobin:
    """The tasks in turn, by name (IMP's released loop): in round r, every task whose interval divides r runs once.

    Attributes:
      intervals: task -> rounds between two of its steps; 1 for tasks not named.
    """

    intervals: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for task, n in self.intervals.items():
            check(n >= 1, f"intervals.{task}", f"{n!r} must be >= 1 round")

    def build(self, tasks: Sequence[str], total: int) -> RoundRobinSequence:
        _known(self.intervals, tasks, "intervals")
        return RoundRobinSequence(tuple(tasks), tuple(self.intervals.get(t, 1) for t in tasks))


class RoundRobinSequence:
    """`sequence(step)` -> task. One period (the least common multiple of the intervals) is laid out once."""

    def __init__(self, tasks: tuple[str, ...], intervals: tuple[int, ...]):
        period = int(np.lcm.reduce(intervals))
        self._period = [t for r in range(1, period + 1) for t, n in zip(tasks, intervals) if r % n == 0]

    def __call__(self, step: int) -> str:
        return self._period[step % len(self._period)]


@SCHEDULES.register("weighted")
@dataclasses.dataclass(frozen=True)
class Weighted:
    """A task drawn at random each step (IMP's text), from Philox(seed, step).

    Attributes:
      weights: task -> weight, not necessarily summing to 1.
      seed: of the draws.
    """

    weights: dict[str, float]
    seed: int = 0

    def __post_init__(self):
        for task, w in self.weights.items():
            check(w >= 0, f"weights.{task}", f"{w!r} must be >= 0")
        check(sum(self.weights.values()) > 0, "weights", "at least one must be > 0")

    def build(self, tasks: Sequence[str], total: int) -> WeightedSequence:
        _known(self.weights, tasks, "weights")
        return WeightedSequence(tuple(tasks), self)


class WeightedSequence:
    def __init__(self, tasks: tuple[str, ...], config: Weighted):
        weights = np.array([config.weights.get(t, 0.0) for t in tasks], np.float64)
        self._tasks, self._cumulative, self._seed = tasks, np.cumsum(weights / weights.sum()), config.seed

    def __call__(self, step: int) -> str:
        draw = np.random.Generator(np.random.Philox(key=[self._seed, step])).random()
        return self._tasks[min(int(np.searchsorted(self._cumulative, draw, side="right")), len(self._tasks) - 1)]


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

    def build(self, tasks: Sequence[str], total: int) -> StagesSequence:
        _known([t for t, _ in self.shares], tasks, "shares")
        return StagesSequence(self.shares, total)


class StagesSequence:
    def __init__(self, shares: Sequence[tuple[str, float]], total: int):
        self._tasks, parts = zip(*shares)
        self._ends = np.round(np.cumsum(parts) / sum(parts) * total).astype(int)

    def __call__(self, step: int) -> str:
        return self._tasks[min(int(np.searchsorted(self._ends, step, side="right")), len(self._tasks) - 1)]


def _known(named, tasks: Sequence[str], key: str) -> None:
    for name in named:
        check(name in tasks, f"schedule.{key}.{name}", f"no such task{nearest(name, tasks)} (tasks: {', '.join(tasks)})")
