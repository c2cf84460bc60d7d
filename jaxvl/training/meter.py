"""Turns the device metrics of each step into records on the host without making a step wait."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Record:
    """Figures of one step of one task, as Python floats."""

    step: int
    task: str
    scalars: dict[str, float]


class Meter:
    """Every `every` steps, one record per task that ran since.

    The host stays at most one step ahead of the devices: `tick` waits for the step before the one just started. So the
    time that a feed makes the loop wait is an upper bound of the time for which the devices had nothing to do.

    Scalars besides the step's own: `examples_per_second` (rows of all tasks), `seconds_per_step`, `data_wait` (share of
    the time spent waiting for a batch), `skipped_records` (of the task's source, so far).
    """

    def __init__(self, every: int, feeds: Mapping[str, Any]):
        self._every, self._feeds = every, feeds
        self._latest: dict[str, tuple[int, dict[str, jax.Array]]] = {}
        self._before: jax.Array | None = None
        self._steps = self._rows = 0
        self._began, self._waited = time.perf_counter(), self._wait()

    def _wait(self) -> float:
        return sum(feed.waited for feed in self._feeds.values())

    def tick(self, step: int, task: str, metrics: dict[str, jax.Array]) -> Iterator[Record]:
        """Call after each step was started; yields records when they are due."""
        if self._before is not None:
            self._before.block_until_ready()
        self._before = metrics["loss"]
        self._latest[task] = (step, metrics)
        self._steps += 1
        self._rows += self._feeds[task].rows
        if step % self._every == 0:
            yield from self.flush()

    def flush(self) -> list[Record]:
        """Records of what has not been reported yet."""
        values = {task: (step, jax.device_get(metrics)) for task, (step, metrics) in self._latest.items()}
        seconds = max(time.perf_counter() - self._began, 1e-9)
        shared = {
            "examples_per_second": self._rows / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_wait": min((self._wait() - self._waited) / seconds, 1.0),
        }
        records = [
            Record(
                step,
                task,
                {**{k: float(v) for k, v in scalars.items()}, **shared, "skipped_records": float(sum(self._feeds[task].skipped.values()))},
            )
            for task, (step, scalars) in values.items()
        ]
        self.pause()
        return records

    def pause(self) -> None:
        """Leaves out the time up to now (an evaluation ran)."""
        self._latest, self._steps, self._rows = {}, 0, 0
        self._began, self._waited = time.perf_counter(), self._wait()
