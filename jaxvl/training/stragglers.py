"""Which of several processes makes the others wait, and with what.

The processes of a run compute in step, so one that waits for its data, or writes its part of a
checkpoint slowly, or computes slowly, slows all of them, and the figures of the first process show
a slow step and nothing else. When the processes confer (`agreement.py`), each says how long it has
waited and written so far, and how long its devices take for the same small program (`probe.py`);
one that did so for much longer than the others is named.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxvl.data import bottlenecks
from jaxvl.data.feed import Feed
from jaxvl.sharding import hosts
from jaxvl.training.probe import Probe

WINDOW = 30.0  # seconds, at least, between two looks
WAITED = 0.1  # share of a window for which a slow process waits for data
WRITTEN = 2.0  # seconds in a window for which a slow process writes
TIMES = 3.0  # as long as the median of the others
COMPUTED = (
    1.3  # as long as the median of the others, for a program; `TIMES` where others compute too
)
PROBES = 3  # times, at least, of which the median counts

# Orbax: from the copy off the devices until what this process writes is on the disk, before it
# waits for the others.
_WRITE = "/jax/checkpoint/write/async/commit_duration_sec"
_written = [0.0]  # seconds, of this process


def _listen(event: str, seconds: float, **_: str | int) -> None:
    if event == _WRITE:
        _written[0] += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


@dataclasses.dataclass(frozen=True)
class Straggler:
    """A process that made the others wait.

    Attributes:
      process: its number.
      part: a stage of the input (`bottlenecks.STAGES`), `checkpoint` or `device`.
      seconds: that it waited for data, wrote, or computed.
      others: the median of the same of the others.
      window: seconds that were looked at.
      device: number of the device that computes slowly, among those of the process.
    """

    process: int
    part: str
    seconds: float
    others: float
    window: float
    device: int | None = None

    def __str__(self) -> str:
        who = hosts.name_of(self.process)
        if self.part == "checkpoint":
            return (
                f"slow disk: {who} has written its part of the checkpoints for "
                f"{self.seconds:.1f} s, the others for {self.others:.1f} s"
            )
        if self.part == "device":
            return (
                f"slow device: {who} takes {1000 * self.seconds:.1f} ms for what takes the others "
                f"{1000 * self.others:.1f} ms; the slowest of its devices: number {self.device}"
            )
        return (
            f"straggler: {who} has waited for its data for {self.seconds:.1f} of {self.window:.0f} "
            f"s, the others for {self.others:.1f} s; most of its input's work: {self.part}; try "
            f"{bottlenecks.ADVICE[self.part]}"
        )


class Stragglers:
    """Compares what the processes have spent since the last look. All of them make one at the same
    place."""

    def __init__(self, feeds: Mapping[str, Feed]):
        self._feeds = feeds
        self._start = self._spent()
        self._then = time.monotonic()
        self._before: np.ndarray | None = None
        self._probe = Probe(jax.local_devices()) if jax.process_count() > 1 else None

    def numbers(self) -> list[int]:
        """Of this process: milliseconds since it was made: waits for data, writes, and each stage's
        work; then the microseconds of its slowest device for the program of `Probe`, and which that
        is. None where there are no others."""
        if self._probe is None:
            return []
        spent = [round(1000 * (now - then)) for now, then in zip(self._spent(), self._start)]
        seconds, device = self._probe.slowest()
        return [*spent, round(1e6 * seconds), device]

    def _spent(self) -> list[float]:
        """Seconds so far."""
        stages = bottlenecks.add(feed.stage_seconds for feed in self._feeds.values())
        waited = sum(feed.waited for feed in self._feeds.values())
        return [waited, _written[0], *(stages[stage] for stage in bottlenecks.STAGES)]

    def probe(self) -> None:
        """Times this process's devices, on which nothing else is under way. All processes do so at
        the same place."""
        if self._probe is not None:
            self._probe.run()

    def look(self, everyone: np.ndarray) -> Sequence[Straggler]:
        """Who has made the others wait since the last look; nobody within `WINDOW`.

        Args:
          everyone: `numbers` of all processes, int64 [processes, 2 + stages + 2].
        """
        now = time.monotonic()
        if self._before is None:
            self._before = np.zeros_like(everyone)
        window = now - self._then
        if len(everyone) == 1 or window < WINDOW:
            return ()
        spent = (everyone - self._before)[:, :-2] / 1000
        self._before = everyone
        self._then = now
        found = []
        for process, (waited, written, *stages) in enumerate(spent):
            others = np.median(np.delete(spent, process, 0), 0)
            if waited > WAITED * window and waited > TIMES * others[0]:
                part = bottlenecks.STAGES[int(np.argmax(stages))]
                found.append(Straggler(process, part, waited, others[0], window))
            if written > WRITTEN and written > TIMES * others[1]:
                found.append(Straggler(process, "checkpoint", written, others[1], window))
        return [*found, *self._slow_devices(everyone[:, -2:], window)]

    def _slow_devices(self, everyone: np.ndarray, window: float) -> list[Straggler]:
        """Args: everyone: microseconds and device, int64 [processes, 2]."""
        if self._probe is None or self._probe.count < PROBES:
            return []
        self._probe.forget()
        most = COMPUTED if self._probe.alone else TIMES
        found = []
        for process, (micros, device) in enumerate(everyone.tolist()):
            others = float(np.median(np.delete(everyone[:, 0], process)))
            if micros > most * others:
                found.append(
                    Straggler(process, "device", micros / 1e6, others / 1e6, window, device)
                )
        return found
