"""What all processes of a run decide together, between two steps: to stop, and to end because
something has failed.

Each process says with the rows that it gives to a step whether something is the matter
(`hosts.Signal`). The compiled step gives the largest of it back, so all processes know the same one
step later, however long a step takes, and confer only then: each tells whether it was asked to
stop, whether a feed of its own has failed, how many records it has read and found bad, how long it
has waited for data and written, and how fast it computes. One of them calls them every `INTERVAL`
seconds for the counts' sake. A run of one process needs none of this and looks after every step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxvl.data.batches import check_budget
from jaxvl.data.feed import SIGNAL, Feed
from jaxvl.data.records import DataError, causes
from jaxvl.sharding import hosts
from jaxvl.training.stragglers import Straggler, Stragglers

INTERVAL = 5.0  # seconds between two sums of the bad records


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was decided.

    Attributes:
      stop: whether a process was asked to stop.
      error: why the run cannot go on; the same for all processes, but that the one whose feed
        failed has what it raised.
      slow: who has made the others wait.
    """

    stop: bool = False
    error: Exception | None = None
    slow: Sequence[Straggler] = ()


class Agreement:
    """What the processes of a run decide. All of them call `after` after every step."""

    def __init__(self, stop: hosts.StopSignal, feeds: Mapping[str, Feed]):
        self._stop = stop
        self._feeds = feeds
        self._stragglers = Stragglers(feeds)
        self._signal: jax.Array | None = None
        self._conferred = time.monotonic()

    @property
    def calling(self) -> bool:
        """Whether this process asks all of them to confer."""
        return self._stop.name is not None or time.monotonic() - self._conferred > INTERVAL

    def after(self, metrics: Sequence[Mapping[str, jax.Array]], wait: bool = False) -> Verdict:
        """What is decided after a step.

        Args:
          metrics: of the step. Those of the step before must have been computed.
          wait: for the step itself: before its state is saved or evaluated.
        """
        if jax.process_count() == 1:
            return self._confer()
        before = self._signal
        self._signal = metrics[0][SIGNAL]
        known = [before] if before is not None else []
        if wait:
            known.append(self._signal)
        if all(int(signal) == hosts.Signal.FINE for signal in known):
            return Verdict()
        jax.block_until_ready(self._signal)
        self._signal = None  # whatever it says was known to who said it, and is told now
        verdict = self._confer()
        self._stragglers.probe()  # nobody computes anything else
        return verdict

    def _confer(self) -> Verdict:
        failures = [
            f"task {task!r}: {_first_line(f.failure)}"
            for task, f in self._feeds.items()
            if f.failure is not None
        ]
        numbers = [self._stop.name is not None, bool(failures)]
        for feed in self._feeds.values():
            seen, skipped = feed.counts()
            numbers += [seen, sum(skipped.values())]
        pace = self._stragglers.numbers()
        everyone, paces = np.split(hosts.gather([*numbers, *pace]), [len(numbers)], axis=1)
        self._conferred = time.monotonic()
        return Verdict(
            self._stopping(everyone[:, 0]),
            self._error(everyone[:, 1:], "; ".join(failures)),
            self._stragglers.look(paces),
        )

    def _stopping(self, asked: np.ndarray) -> bool:
        if asked.any() and self._stop.name is None:
            self._stop.name = f"a signal to process {np.flatnonzero(asked)[0]}"
        return bool(asked.any())

    def _error(self, told: np.ndarray, failure: str) -> Exception | None:
        """Args: told: int64 [processes, 1 + 2 tasks]; failure: of this process, if any."""
        failed = np.flatnonzero(told[:, 0])
        if len(failed):
            return self._failed(failed, failure)
        totals = told[:, 1:].sum(0).reshape(-1, 2).tolist()
        for (task, feed), (seen, bad) in zip(self._feeds.items(), totals):
            detail = f" ({causes(feed.skipped)})"
            if len(told) > 1:
                detail = f" in all {len(told)} processes (here: {causes(feed.skipped) or 'none'})"
            try:
                check_budget(feed.config, feed.name, seen, bad, detail)
            except DataError as error:
                return DataError(f"task {task!r}: {error}")
        return None

    def _failed(self, failed: np.ndarray, failure: str) -> Exception:
        texts = hosts.gather_texts(failure)
        own = next(
            (feed.failure for feed in self._feeds.values() if feed.failure is not None), None
        )
        if own is not None:
            return own
        return DataError(
            "; ".join(
                f"process {i} of {len(texts)} cannot read its data: {texts[i]}" for i in failed
            )
        )


def _first_line(error: Exception) -> str:
    """Its kind and the beginning of what it says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
