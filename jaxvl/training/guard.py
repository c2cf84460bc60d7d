"""Guards: a step with a non-finite loss or a gradient spike is not applied and is counted; k of
them in a row end the run, or take it back to a checkpoint of before (`rollback.py`).

The judgement is made on the device, inside the step. The host reads it one step later (`Watch`),
when it is there, so that no step waits for the host.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl.aliases import Json
from jaxvl.config import Range, Steps, check
from jaxvl.data.feed import SIGNAL, Feed
from jaxvl.data.gaps import Span
from jaxvl.sharding.hosts import Signal
from jaxvl.training.schedule import Turn
from jaxvl.training.state import GuardState

Few = Annotated[int, Range(0, 1_048_576)]


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had to be skipped."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is not applied.

    Attributes:
      spike: skip if the gradient's norm exceeds this multiple of the moving average of accepted
        norms; None: never.
      patience: accepted steps before the average counts as known.
      stop_after: skipped steps in a row, of one task, that end the run or take it back.
      rollback: how often the run goes back to the last good checkpoint, instead of ending: that of
        the last multiple of `checkpoint.every`, or of step 0, before the first step of the row.
      skip: data that the run does not meet again then. `bad`: that of the skipped steps. All steps
        before these come out as they did, so it cures bad data. `since`: of all tasks, whatever
        they have had since the checkpoint, the steps of the row included (PaLM, Chowdhery et al.
        2022, section 5.1). The weights take another way from the checkpoint on.
      reports: how many skipped steps are described in `WORKDIR/spikes` (`spikes.py`).
    """

    spike: float | None = 20.0
    patience: Steps = 100
    stop_after: Steps = 10
    rollback: Few = 0
    skip: Literal["bad", "since"] = "bad"
    reports: Few = 20

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


class BadStep(NamedTuple):
    """A step of a task that was not applied.

    Attributes:
      step: its number, from 1.
      spans: positions of its batch in the task's stream.
    """

    step: int
    task: str
    spans: tuple[Span, ...]

    def __str__(self) -> str:
        return f"step {self.step} ({self.task}, records {named(self.spans)})"


def named(spans: Iterable[Span]) -> str:
    """Positions as a text: `32-47`."""
    return ", ".join(f"{start}-{end - 1}" for start, end in spans)


class Judged(NamedTuple):
    """A step that was not applied, with its metrics by name."""

    bad: BadStep
    figures: dict[str, float]


class _Started(NamedTuple):
    step: int
    turn: Turn
    metrics: Sequence[Mapping[str, jax.Array]]
    spans: tuple[tuple[Span, ...], ...]  # of each task of the turn


class Watch:
    """Tells which steps were not applied, in every process the same.

    What it knows is saved in the frame of checkpoints, so that a resumed run goes on with it.

    Args:
      saved: what `frame` gave.
      positions: task -> its position in its stream.

    Attributes:
      rows: task -> its last steps, as far as they were not applied one after the other.
      ends: task -> position of its stream after the last step that was read.
      rollbacks: how often the run has gone back.
      reports: how many steps were described.
    """

    def __init__(self, saved: Mapping[str, Json] | None = None, positions: Mapping[str, int] = {}):
        saved = saved or {}
        self.begin(saved, positions)
        self.rollbacks: int = saved.get("rollbacks", 0)
        self.reports: int = saved.get("reports", 0)

    def frame(self) -> dict[str, Json]:
        """What a checkpoint keeps, JSON-able."""
        rows = {
            task: [[bad.step, [list(span) for span in bad.spans]] for bad in row]
            for task, row in self.rows.items()
            if row
        }
        return {"rows": rows, "rollbacks": self.rollbacks, "reports": self.reports}

    def begin(self, saved: Mapping[str, Json], positions: Mapping[str, int]) -> None:
        """Takes over the rows of a checkpoint; of what was started since, nothing is read."""
        self.rows: dict[str, list[BadStep]] = {}
        for task, row in saved.get("rows", {}).items():
            self.rows[task] = [
                BadStep(step, task, tuple((start, end) for start, end in spans))
                for step, spans in row
            ]
        self.ends = dict(positions)
        self._started: collections.deque[_Started] = collections.deque()

    def started(
        self,
        step: int,
        turn: Turn,
        metrics: Sequence[Mapping[str, jax.Array]],
        feeds: Mapping[str, Feed],
    ) -> None:
        """Notes a step whose program was started."""
        metrics[0]["skipped_in_a_row"].copy_to_host_async()
        spans = tuple(feeds[task].latest for task in turn.tasks)
        self._started.append(_Started(step, turn, metrics, spans))

    def read(self, stop_after: int, wait: bool) -> list[Judged]:
        """Steps that were not applied, of those started before the last one; with `wait`, of the
        last one too. A row that reaches `stop_after` steps is the last thing that is read."""
        found = []
        while len(self._started) > (0 if wait else 1):
            started = self._started.popleft()
            found += self._judged(started)
            if self.full_row(stop_after):
                break
        return found

    def _judged(self, started: _Started) -> list[Judged]:
        for task, spans in zip(started.turn.tasks, started.spans):
            self.ends[task] = spans[-1][1]
        if int(started.metrics[0]["skipped_in_a_row"]) == 0:  # tasks of one step share it
            for task in started.turn.tasks:
                self.rows[task] = []
            return []
        found = []
        everything = jax.device_get(list(started.metrics))
        for task, spans, metrics in zip(started.turn.tasks, started.spans, everything):
            if metrics.pop(SIGNAL, Signal.FINE) >= Signal.BROKEN:
                continue  # rows that are none: the guard has not counted the step
            bad = BadStep(started.step, task, spans)
            self.rows.setdefault(task, []).append(bad)
            figures = {name: float(value) for name, value in metrics.items()}
            found.append(Judged(bad, figures))
        return found

    def full_row(self, stop_after: int) -> list[BadStep]:
        """The row of a task that has reached `stop_after` steps; empty where none has."""
        rows = (row for row in self.rows.values() if len(row) >= stop_after)
        return next(rows, [])

    @property
    def first_bad(self) -> int | None:
        """Number of the first step of all rows."""
        return min((row[0].step for row in self.rows.values() if row), default=None)


def diverged(row: Sequence[BadStep], figures: Mapping[str, float]) -> TrainingDiverged:
    """What ends a run with too many skipped steps in a row: its task, its last step, and the
    figures of that."""
    last = row[-1]
    return TrainingDiverged(
        f"task {last.task!r}, step {last.step}: {len(row)} steps in a row "
        f"had a non-finite loss or a gradient spike{_told(figures)}; the state is that of the last "
        "good step and is saved. Lower optim.lr, raise optim.warmup, or look at the data of "
        "this task (WORKDIR/spikes)."
    )


def _told(figures: Mapping[str, float]) -> str:
    if not figures:
        return ""
    return f" (loss {figures['loss']:.4g}, gradient norm {figures['norm/gradient']:.4g})"
