"""Where the wall time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

Account = Literal["startup", "training", "evaluation", "checkpoint"]
ACCOUNTS: tuple[Account, ...] = ("startup", "training", "evaluation", "checkpoint")


class Clock:
    """Counts the seconds of this process by what they are spent on; exactly one account runs at any
    time.

    It begins with `startup`: data, compilation, a restored checkpoint. The start of Python and the
    import of JAX come before it. `checkpoint` holds the time for which the loop waits for a save;
    the write itself goes on beside the steps.
    """

    def __init__(self):
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._running: Account = "startup"
        self._since = time.perf_counter()

    def start(self, account: Account) -> None:
        """Stops the account that runs and starts another."""
        now = time.perf_counter()
        self._seconds[self._running] += now - self._since
        self._running = account
        self._since = now

    @contextlib.contextmanager
    def away(self, account: Account) -> Iterator[None]:
        """The time inside goes to `account`; afterwards the one that ran before runs again."""
        before = self._running
        self.start(account)
        try:
            yield
        finally:
            self.start(before)

    def seconds(self) -> dict[Account, float]:
        """Seconds of every account up to now."""
        self.start(self._running)
        return dict(self._seconds)
