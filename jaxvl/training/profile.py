"""A trace of a few steps for xprof, TensorBoard or Perfetto: `--profile=10:12`."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable

import jax

from jaxvl.aliases import Tree
from jaxvl.config import check


class Profile:
    """Traces the steps `first:last` of a run, both included, into `workdir/profile`.

    The first process traces its own devices; the others run the same program. Each traced step is
    one `train` annotation with its number, from the wait for its batch to the start of its program.
    `xprof workdir/profile` or `tensorboard --logdir workdir/profile` (pip install xprof) opens the
    trace.

    Args:
      window: `FIRST:LAST`, numbered from 1 as in the log; None: nothing is traced.
      folder: the run's own, in the first process.
      total: steps of the run.
      say: shows one line.

    Raises:
      ConfigError: the window is none, or beyond the run's end.
    """

    def __init__(
        self,
        window: str | None,
        folder: pathlib.Path | None,
        total: int,
        say: Callable[[str], None],
    ):
        self._folder = None if folder is None else folder / "profile"
        self._say = say
        self._steps = range(0)
        self._tracing = False
        if window is None:
            return
        match = re.fullmatch(r"(\d+):(\d+)", window)
        check(match is not None, "--profile", f"{window!r} must be two steps, FIRST:LAST, as 10:12")
        first, last = map(int, match.groups())
        check(
            1 <= first <= last <= total,
            "--profile",
            f"{window!r} must be steps in 1 … {total}, the first one first",
        )
        self._steps = range(first, last + 1)

    def begin(self, start: int) -> None:
        """Says what will be traced of a run that begins after `start` steps."""
        if not self._steps:
            return
        first = max(self._steps[0], start + 1)
        last = self._steps[-1]
        if first > last:
            self._say(
                f"profile: nothing is traced, the run goes on after step {start} and step "
                f"{last} is past"
            )
        elif first > self._steps[0]:
            self._say(
                f"profile: the run goes on after step {start}; steps {first} to {last} are traced"
            )
        self._steps = range(first, last + 1)

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """Around everything that step number `step` does; starts the trace where it is the first
        one."""
        if step not in self._steps:
            return contextlib.nullcontext()
        if not self._tracing and jax.process_index() == 0:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = (
                0  # every Python call would slow the steps down and hide them
            )
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def stop(self, step: int, outputs: Tree) -> None:
        """After step number `step`: ends the trace where it was the last one, once its `outputs`
        are there."""
        if self._tracing and step >= self._steps[-1]:
            jax.block_until_ready(outputs)
            self.close()
            self._say(f"profile of steps {self._steps[0]} to {self._steps[-1]}: {self._folder}")

    def close(self) -> None:
        """Ends a trace that the run was stopped in."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
