"""Checkpoints: the whole run in one atomic folder, written in the background.

A checkpoint holds the state (parameters, moments, averages, objective state, rng root, guard
counters) and its `frame`: its step, the data position of every task, the resolved config, and what
the weights cannot be used without: the tokenizer's file and rule and the preprocessing. Orbax
writes into a temporary folder and renames it, so one that was cut short is never seen.

All of it has checksums (`checksums.py`). A checkpoint that cannot be read is moved to
`FOLDER.damaged/STEP` when a run is resumed. It is kept there, and its place is free for a good one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PolicyCheckpointInfo,
    PreservationContext,
)

from jaxvl import paths
from jaxvl.aliases import Json, Tree
from jaxvl.config import Count, Range, Steps, check
from jaxvl.sharding import hosts
from jaxvl.training import checksums, handlers, object_store
from jaxvl.training.quiet import quiet

# What a checkpoint holds beside the state: `step`, `config`, `tokenizer`; see `Run.frame`.
Frame = dict[str, Json]


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or the last one could not be written."""


class OtherState(CheckpointError):
    """A readable checkpoint whose state has other leaves than the run's."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: steps between two checkpoints; the last step is always saved.
      keep: how many of the newest to keep.
      keep_best: how many of the best by `best_metric` to keep besides.
      best_metric: `EVALUATOR/METRIC`, higher is better (a minus sign in front: lower is), or None.
        A checkpoint is also saved whenever this evaluator runs; one of a step at which it did not
        run has no score.
    """

    every: Steps = 1000
    keep: Count = 2
    keep_best: Annotated[int, Range(0, 1_048_576)] = 1
    best_metric: str | None = None

    def __post_init__(self):
        check(self.every >= 1, "every", f"{self.every!r} must be >= 1 step")
        check(self.keep >= 1, "keep", f"{self.keep!r} must be >= 1 checkpoint")
        check(self.keep_best >= 0, "keep_best", f"{self.keep_best!r} must be >= 0 checkpoints")

    @property
    def best_evaluator(self) -> str | None:
        """Name of the evaluator that gives `best_metric`."""
        if self.best_metric is None:
            return None
        return self.best_metric.lstrip("-").split("/")[0]

    def score(self, figures: dict[str, float]) -> float | None:
        """Score of weights with these figures, higher is better; None where `best_metric` is not
        among them."""
        if self.best_metric is None:
            return None
        value = figures.get(self.best_metric.lstrip("-"))
        if value is None or np.isnan(value):
            return None
        return -value if self.best_metric.startswith("-") else value


class Restored(NamedTuple):
    """A checkpoint that was read: the step that it was saved after, its state and its frame."""

    step: int
    state: Any
    frame: Frame


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Args:
      folder: made if it is missing.
      config: when to save and what to keep.
      read_only: nothing is made, moved or deleted.

    Attributes:
      held: step of a checkpoint that is kept besides, as long as it is named here.
    """

    def __init__(
        self,
        folder: str | paths.Path,
        config: CheckpointConfig = CheckpointConfig(),
        *,
        read_only: bool = False,
    ):
        self.folder = paths.absolute(folder)
        self.config = config
        self.failures = 0
        self._read_only = read_only
        self._lost = False  # whether the last save could not even be started
        self._scores: dict[int, float] = {}
        self.held: int | None = None
        policies = [LatestN(config.keep), _Held(self)]
        if config.best_metric and config.keep_best:
            policies.append(_Best(self._scores, config.keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            cleanup_tmp_directories=not read_only,
            **object_store.prepare(self.folder),
        )
        with quiet(read_only):  # that the folder is read only is what was asked for
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=handlers.registry()
            )

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps."""
        return step % self.config.every == 0

    def score(self, step: int, figures: dict[str, float]) -> None:
        """Notes the figures that were measured with the weights of `step`, for `keep_best`."""
        value = self.config.score(figures)
        if value is not None:
            self._scores[step] = value

    # ----------------------------------------------------------------------------------------------
    # Writing

    def save(self, step: int, state: Tree, frame: Frame) -> bool:
        """Starts writing a checkpoint; returns once the state has been copied off the devices.

        A failure (a full disk) is logged and counted, not raised: training goes on and the next
        save tries again. A failure that only shows in the background is counted by the next `save`
        or `settle`.

        Returns:
          Whether the write was started, or the checkpoint is there already.
        """
        self._lost = False
        try:
            self.settle()
            if step in self._manager.all_steps():
                return True
            return self._write(step, state, {**frame, "step": step})
        except (
            Exception
        ) as error:  # whatever storage raises, losing a checkpoint must not lose the run
            self._failed(step, error)
            self._lost = True
            return False

    def _write(self, step: int, state: Any, frame: Frame) -> bool:
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            frame=ocp.args.JsonSave(checksums.signed(frame)),
        )
        return self._manager.save(step, args=items, force=True)

    def hold_regular(self, until: int) -> None:
        """Holds the newest checkpoint of a multiple of `every`, at most of step `until`. Waits for
        the write in the background, so that it is the same one in every run."""
        self.settle()
        every = self.config.every
        regular = (step for step in self.steps if step % every == 0 and step <= until)
        self.held = max(regular, default=None)

    def drop(self, step: int) -> None:
        """Deletes a checkpoint. All processes call it."""
        self._manager.delete(step)
        self._scores.pop(step, None)

    def settle(self) -> None:
        """Waits for the write in the background; a failure of it is logged and counted."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._failed(None, error)

    def _failed(self, step: int | None, error: Exception) -> None:
        self.failures += 1
        what = "the previous checkpoint" if step is None else f"checkpoint {step}"
        good = self.steps
        logging.error(
            "%s could not be written: %s: %s. Last good: %s. Training goes on.",
            what,
            type(error).__name__,
            error,
            good[-1] if good else "none",
        )

    def finish(self) -> None:
        """Waits for the last write.

        Raises:
          CheckpointError: the last write failed, naming the last good checkpoint.
        """
        before = self.failures
        self.settle()
        if self.failures > before or self._lost:
            last = self.steps[-1:] or "none"
            raise CheckpointError(
                f"{self.folder}: the last checkpoint could not be written (see above); last "
                f"good: {last}"
            )

    def close(self) -> None:
        self._manager.close()

    # ----------------------------------------------------------------------------------------------
    # Reading

    def restore(
        self,
        abstract_of: Callable[[Frame], Tree],
        step: int | None = None,
        refuse: Callable[[Frame], None] | None = None,
    ) -> Restored | None:
        """The newest readable checkpoint, or that of `step`.

        Unless read-only, damaged checkpoints that are passed over are moved out of the way, and a
        folder that was renamed gets the name of the step that it holds.

        Args:
          abstract_of: frame -> shapes, dtypes and shardings of the state on the present mesh (any
            mesh will do).
          refuse: called with the frame before the state is read; raises where the checkpoint is of
            another kind.

        Returns:
          None where there is no checkpoint at all.

        Raises:
          CheckpointError: `step` is not there, or none can be read.
          OtherState: the newest is readable, but its state has other leaves.
        """
        self._check_step(step)
        problems: dict[int, str] = {}
        for candidate in self._candidates(step):
            frame = self._read_frame(candidate, problems)
            if frame is None:
                continue
            if refuse is not None:
                refuse(frame)
            abstract = abstract_of(frame)
            state = self._read(candidate, "state", whole(abstract), problems)
            if state is None:
                self._check_alike(candidate, abstract)
                continue
            self._set_aside(problems)
            return Restored(self._own_step(candidate, frame), state, frame)
        if problems:
            raise self._unreadable(problems)
        return None

    def frame(self, step: int | None = None) -> tuple[int, Frame]:
        """Name and frame of the newest checkpoint, or of that of `step`.

        The name is the step by which `restore` finds it; `frame["step"]` is the step that it was
        saved after.

        Raises:
          CheckpointError: there is none.
        """
        self._check_step(step)
        problems: dict[int, str] = {}
        for candidate in self._candidates(step):
            frame = self._read_frame(candidate, problems)
            if frame is not None:
                return candidate, frame
        raise self._unreadable(problems)

    def shapes(self, step: int) -> dict[str, Tree]:
        """Shapes and dtypes of the state of a checkpoint, as it describes itself: nested dicts by
        the names of its parts."""
        return self._manager.item_metadata(step)["state"].tree

    def _unreadable(self, problems: dict[int, str]) -> CheckpointError:
        if not problems:
            return CheckpointError(f"{self.folder}: no readable checkpoint: there is none")
        causes = "\n  ".join(f"step {n}: {cause}" for n, cause in problems.items())
        return CheckpointError(f"{self.folder}: no checkpoint can be read:\n  {causes}")

    def _check_step(self, step: int | None) -> None:
        if step is None or step in self.steps:
            return
        there = ", ".join(map(str, self.steps)) or "none"
        raise CheckpointError(f"{self.folder}: no checkpoint of step {step} (there are: {there})")

    def _candidates(self, step: int | None) -> Sequence[int]:
        return [step] if step is not None else self.steps[::-1]

    def _read_frame(self, step: int, problems: dict[int, str]) -> Frame | None:
        frame = self._read(step, "frame", ocp.args.JsonRestore(), problems)
        if frame is None:
            return None
        return {"step": step, **frame}  # those of earlier versions do not say their step

    def _read(self, step: int, item: str, how: Any, problems: dict[int, str]) -> Any | None:
        """An item of a checkpoint; None, with the cause in `problems`, where any process cannot
        read it."""
        found = None
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
            if isinstance(read, handlers.Unread):
                raise read.error
            found = read
        except (
            Exception
        ) as error:  # a damaged checkpoint is passed over, loudly, for the one before it
            paths.exists(
                self.folder
            )  # raises where the store cannot be reached, which is no damage
            problems[step] = f"{item}: {_first_cause(error)}"
        if not hosts.gather([found is not None]).all():
            told = enumerate(hosts.gather_texts(problems.get(step, "")))
            first = next(f"{hosts.name_of(i)}: {why}" for i, why in told if why)
            problems.setdefault(step, first)
            logging.error("checkpoint %d cannot be read: %s", step, problems[step])
            return None
        return found

    def _check_alike(self, step: int, abstract: Tree) -> None:
        """Raises OtherState where the checkpoint's own description says that its state has other
        leaves.

        So a good checkpoint is never taken for a damaged one.
        """
        try:
            there = _leaves(self._manager.item_metadata(step)["state"].tree)
        except Exception:  # not even its description can be read: it is damaged
            return
        here = _leaves(abstract)
        for path in sorted({*there, *here}):
            if there.get(path) != here.get(path):
                ours = here.get(path, "not there")
                theirs = there.get(path, "not there")
                raise OtherState(
                    f"{self.folder}: checkpoint {step} holds another state than this run: "
                    f"{path} is {theirs} in it and {ours} here"
                )

    # ----------------------------------------------------------------------------------------------
    # Putting the folder in order

    def _set_aside(self, problems: dict[int, str]) -> None:
        """Moves damaged checkpoints to `FOLDER.damaged`, so that good ones can be written in their
        place."""
        for step, cause in problems.items():
            moved = self._move(step, f"it is damaged ({cause})")
            if moved is not None:
                logging.error("checkpoint %d is damaged (%s); it is kept as %s", step, cause, moved)

    def _own_step(self, name: int, frame: Frame) -> int:
        """The step that a checkpoint was saved after, which its folder's `name` may belie."""
        step = frame["step"]
        if step == name:
            return step
        if step in self.steps:
            moved = self._move(name, f"it holds step {step}")
        else:
            moved = self._move(name, f"it holds step {step}", self.folder / str(step))
        logging.error("checkpoint folder %d holds step %d; it is now %s", name, step, moved)
        return step

    def _move(self, step: int, why: str, to: paths.Path | None = None) -> paths.Path | None:
        """Renames a checkpoint's folder; returns the new path, or None where the checkpoints are
        read-only."""
        if self._read_only:
            logging.error("checkpoint %d: %s; left as it is", step, why)
            return None
        if to is None:
            to = _free_name(self.folder.with_name(self.folder.name + ".damaged") / str(step))
        multihost_utils.sync_global_devices(f"checkpoint {step} is about to be moved")
        if jax.process_index() == 0:
            paths.make_folder(to.parent)
            paths.move(self.folder / str(step), to)
        multihost_utils.sync_global_devices(f"checkpoint {step} is moved")
        self._manager.reload()
        return to


class _Held:
    """Keeps the checkpoint that is held."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> list[bool]:
        del context
        return [info.step == self._checkpoints.held for info in checkpoints]


class _Best:
    """Keeps the checkpoints of the `n` best scores; one without a score is not among them."""

    def __init__(self, scores: dict[int, float], n: int):
        self._scores = scores
        self._n = n

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        scored = [step for step in steps if step in self._scores]
        best = sorted(scored, key=lambda step: (self._scores[step], step))[-self._n :]
        return [step in best for step in steps]


def abstract_state(shapes: Tree, shardings: Tree) -> Tree:
    """Shapes with shardings, as `restore` wants them."""
    return jax.tree.map(
        lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings
    )


def whole(abstract: Tree) -> ocp.args.PyTreeRestore:
    """How a state is read: every array, as `abstract` has it."""
    return ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
    )


# What stands for an array in a state, in its shapes, and in a checkpoint's description.
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct, ocp.metadata.ArrayMetadata)


def _leaves(tree: Tree) -> dict[str, str]:
    """Path -> shape and dtype of every array of a state, or of a checkpoint's description of one;
    "empty" of empty nodes."""
    found = {}
    for path, leaf in ocp.tree.to_flat_dict(tree, keep_empty_nodes=True, sep="/").items():
        is_array = isinstance(leaf, _ARRAYS)
        found[path] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" if is_array else "empty"
    return found


def _first_cause(error: BaseException) -> str:
    """What an error began with, in one line; Orbax's own last one names no file."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines() or [""]
    said = lines[0].partition(" [tensorstore_spec")[0]  # a page
    return f"{type(error).__name__}: {said}"


def _free_name(path: paths.Path) -> paths.Path:
    """`path`, or `path-2`, `path-3` … where that is taken."""
    candidate = path
    n = 1
    while paths.exists(candidate):
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate
