"""Back to the last good checkpoint, after too many steps in a row that were not applied.

The checkpoint is that of the last multiple of `checkpoint.every` before the first step of the row
(of step 0 where there is none), whatever else was saved since. So where a run goes back to depends
on nothing but its numbers, and a run that is stopped or killed and resumed goes the same way: what
is lost of a rollback that no checkpoint holds yet is found again. A checkpoint that could not be
written or read is passed over for the one before it, with other numbers.

All processes come here at the same step. The data that shall not be met again become gaps of the
tasks' streams, which every later checkpoint keeps. Checkpoints after the one that the run goes back
to are of a past that did not happen; they are deleted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from jaxvl.data.batches import Start
from jaxvl.data.gaps import Gaps, Span
from jaxvl.training.checkpoint import CheckpointError, Frame, Restored
from jaxvl.training.guard import BadStep, named
from jaxvl.training.run import Run
from jaxvl.training.state import TrainState, present_form, saved_form


def may_go_back(run: Run) -> bool:
    """Whether a task has a full row of bad steps, and the run may and can go back once more."""
    guard = run.experiment.guard
    row = run.watch.full_row(guard.stop_after)
    if not row or run.watch.rollbacks >= guard.rollback:
        return False
    run.checkpoints.settle()
    return bool(_good(run, row))


def _good(run: Run, row: Sequence[BadStep]) -> list[int]:
    """Steps of the checkpoints that a run may go back to, oldest first."""
    every = run.experiment.checkpoint.every
    return [s for s in run.checkpoints.steps if s % every == 0 and s < row[0].step]


def go_back(run: Run, state: TrainState) -> tuple[TrainState, int]:
    """The state to go on with, and its step; feeds, figures and guard are those of that step.

    Args:
      state: the present one; it is deleted.

    Raises:
      CheckpointError: no checkpoint of before the first bad step can be read.
    """
    watch = run.watch
    row = watch.full_row(run.experiment.guard.stop_after)
    reached = int(state.step)
    jax.tree.map(lambda leaf: leaf.delete(), state)  # two states may not fit
    restored = _restore(run, row)
    frame = restored.frame
    skipped = _skipped(run, row, frame)
    for step in run.checkpoints.steps:
        if step > restored.step:
            run.checkpoints.drop(step)
    run.figures.forget(restored.step)
    sources = run.jobs.sources(restored.step)
    for task, feed in run.feeds.items():
        gaps = Gaps([*feed.gaps.spans, *skipped.get(task, ())])
        feed.rewind(sources[task], start_of(frame, task, gaps))
    watch.rollbacks += 1
    watch.begin(frame.get("guard", {}), {task: feed.position for task, feed in run.feeds.items()})
    _tell(run, row, reached, restored.step, skipped)
    return present_form(restored.state), restored.step


def start_of(frame: Frame | None, task: str, gaps: Gaps | None = None) -> Start:
    """Where a task's stream begins, by the frame of a checkpoint; at its beginning without one.

    Args:
      gaps: None: those of the frame.
    """
    if frame is None:
        return Start()
    if gaps is None:
        gaps = Gaps(frame.get("gaps", {}).get(task, ()))
    position = frame["positions"].get(task, 0)
    return Start(
        gaps.forward(position, 0),
        frame.get("task_steps", {}).get(task),
        frame.get("samplers", {}).get(task),
        frame.get("skipped_records", {}).get(task, {}),
        gaps.spans,
    )


def _restore(run: Run, row: Sequence[BadStep]) -> Restored:
    """The newest good checkpoint."""
    problems = []
    for step in reversed(_good(run, row)):
        try:
            found = run.checkpoints.restore(functools.partial(saved_form, run.abstract), step)
        except CheckpointError as error:  # a damaged one; the one before it may do
            problems.append(str(error))
            continue
        if found is not None:
            return found
    raise CheckpointError(
        f"no checkpoint of before step {row[0].step} can be read to go back to: "
        + "; ".join(problems)
    )


def _skipped(run: Run, row: Sequence[BadStep], frame: Frame) -> dict[str, list[Span]]:
    """Task -> parts of its stream that are not met again."""
    found: dict[str, list[Span]] = {}
    numbers = {bad.step for bad in row}
    for bad in (bad for own in run.watch.rows.values() for bad in own):
        if bad.step in numbers:  # the tasks of one step are skipped together
            found.setdefault(bad.task, []).extend(bad.spans)
    if run.experiment.guard.skip == "since":
        for task, end in run.watch.ends.items():
            found.setdefault(task, []).append((frame["positions"].get(task, 0), end))
    return found


def _tell(
    run: Run, row: Sequence[BadStep], reached: int, back: int, skipped: dict[str, list[Span]]
) -> None:
    """Says and records what was gone back to, and which data are left out."""
    steps = ", ".join(str(bad.step) for bad in row)
    left = "; ".join(f"{task}: {named(Gaps(spans).spans)}" for task, spans in skipped.items())
    run.writer.record(
        back,
        "event",
        "rollback",
        {
            "from": reached,
            "to": back,
            "number": run.watch.rollbacks,
            "task": row[0].task,
            "bad_steps": steps,
            "skipped_records": left,
        },
    )
    run.writer.say(
        f"[bold yellow]back to step {back}[/] from step {reached} (rollback "
        f"{run.watch.rollbacks} of {run.experiment.guard.rollback}): steps {steps} of "
        f"{row[0].task} had a non-finite loss or a gradient spike; records of the stream that "
        f"are left out: {left}"
    )
