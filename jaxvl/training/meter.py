"""Turns the device metrics of each step into records on the host without making a step wait."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxvl.data.feed import SIGNAL
from jaxvl.sharding.hosts import Signal
from jaxvl.training.schedule import Turn

ALL = "all"  # name of the record of all tasks together


@dataclasses.dataclass(frozen=True)
class Record:
    """Figures of one step of one task, or of `ALL`, as Python floats."""

    step: int
    task: str
    scalars: dict[str, float]


class Meter:
    """Every `every` steps, one record per task that ran since; of several tasks also one of them together, named `ALL`.

    The host stays at most one step ahead of the devices: `tick` waits for the step before the one just started. So the
    time that a feed makes the loop wait is an upper bound of the time for which the devices had nothing to do.

    Scalars besides the step's own: `examples_per_second` (rows of all tasks), `seconds_per_step`, `data_wait` (share of
    the time spent waiting for a batch), `task_steps` (of the task, since the start of the run), `skipped_records` (of the
    task's source, so far).

    Of all together, from the latest figures of every task that has run, however old: `loss` (their mean), `loss/TASK`,
    `steps/TASK`, `skipped`, `lr` and the rates.
    """

    def __init__(self, every: int, feeds: Mapping[str, Any]):
        self._every, self._feeds = every, feeds
        self._new: dict[str, tuple[int, dict[str, jax.Array]]] = {}
        self._last: dict[str, Record] = {}
        self._joint = False  # whether a step runs several tasks
        self._before: jax.Array | None = None
        self.pause()

    def _wait(self) -> float:
        return sum(feed.waited for feed in self._feeds.values())

    def tick(self, step: int, turn: Turn, metrics: Sequence[dict[str, jax.Array]]) -> Iterator[Record]:
        """Call after each step was started, with the metrics of each of its tasks; yields records when they are due."""
        if self._before is not None:
            self._before.block_until_ready()
        self._before, self._joint = metrics[0]["loss"], len(turn.tasks) > 1
        for task, figures in zip(turn.tasks, metrics):
            self._new[task] = step, figures
            self._rows += self._feeds[task].rows
        self._steps += 1
        if step % self._every == 0:
            yield from self.flush()

    def flush(self) -> list[Record]:
        """Records of what has not been reported yet."""
        values = {}
        for task, (step, metrics) in self._new.items():
            scalars = jax.device_get(metrics)
            if scalars.pop(SIGNAL, Signal.FINE) < Signal.BROKEN:  # figures of rows that are none would be taken for real ones
                values[task] = step, scalars
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rates = {
            "examples_per_second": self._rows / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_wait": min((self._wait() - self._waited) / seconds, 1.0),
        }
        records = []
        for task, (step, scalars) in values.items():
            feed = self._feeds[task]
            sums = {"task_steps": float(feed.steps), "skipped_records": float(sum(feed.skipped.values()))}
            records.append(Record(step, task, {**{k: float(v) for k, v in scalars.items()}, **rates, **sums}))
        self._last |= {record.task: record for record in records}
        if records and len(self._feeds) > 1:
            newest = max(records, key=lambda record: record.step)
            records.append(Record(newest.step, ALL, {**self._together(), "lr": newest.scalars["lr"], **rates}))
        self._new = {}
        self.pause()
        return records

    def _together(self) -> dict[str, float]:
        last = {task: self._last[task].scalars for task in self._feeds if task in self._last}
        count = max if self._joint else sum  # tasks that are summed skip a step together
        return {
            "loss": statistics.fmean(scalars["loss"] for scalars in last.values()),
            **{f"loss/{task}": scalars["loss"] for task, scalars in last.items()},
            **{f"steps/{task}": float(feed.steps) for task, feed in self._feeds.items()},
            "skipped": count(scalars["skipped"] for scalars in last.values()),
        }

    def pause(self) -> None:
        """Leaves the time up to now out of the rates (an evaluation ran)."""
        self._steps = self._rows = 0
        self._began, self._waited = time.perf_counter(), self._wait()
