"""Checkpoints: the whole run in one atomic folder, written in the background.

A checkpoint holds the state (parameters, moments, averages, objective state, rng root, guard counters), the data
position of every task, the resolved config, and what the weights cannot be used without: the tokenizer's file and rule
and the preprocessing. Orbax writes into a temporary folder and renames it, so one that was cut short is never seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxvl import paths
from jaxvl.config import check
from jaxvl.training import object_store


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or the last one could not be written."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: steps between two checkpoints; the last step is always saved.
      keep: how many of the newest to keep.
      keep_best: how many of the best by `best_metric` to keep besides.
      best_metric: `EVALUATOR/METRIC`, higher is better (a minus sign in front: lower is), or None.
    """

    every: int = 1000
    keep: int = 2
    keep_best: int = 1
    best_metric: str | None = None

    def __post_init__(self):
        check(self.every >= 1, "every", f"{self.every!r} must be >= 1 step")
        check(self.keep >= 1, "keep", f"{self.keep!r} must be >= 1 checkpoint")
        check(self.keep_best >= 0, "keep_best", f"{self.keep_best!r} must be >= 0 checkpoints")


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: str | paths.Path, config: CheckpointConfig = CheckpointConfig(), *, read_only: bool = False):
        self.folder, self.config = paths.absolute(folder), config
        self.failures = 0
        self._lost = False  # whether the last save could not even be started
        policies = [LatestN(config.keep)]
        if config.best_metric and config.keep_best:
            policies.append(BestN(get_metric_fn=self._score, n=config.keep_best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies), create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only,
            **object_store.prepare(self.folder),
        )  # fmt: skip
        handlers = {"state": ocp.StandardCheckpointHandler(), "frame": ocp.JsonCheckpointHandler()}
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("state", ocp.args.StandardSave, handlers["state"])
        registry.add("state", ocp.args.StandardRestore, handlers["state"])
        registry.add("frame", ocp.args.JsonSave, handlers["frame"])
        registry.add("frame", ocp.args.JsonRestore, handlers["frame"])
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)

    def _score(self, metrics: dict[str, float]) -> float:
        name = self.config.best_metric
        sign, name = (-1, name[1:]) if name.startswith("-") else (1, name)
        return sign * metrics.get(name, -sign * float("inf"))

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps."""
        return step % self.config.every == 0

    def save(self, step: int, state: Any, frame: dict[str, Any], metrics: dict[str, float] | None = None) -> bool:
        """Starts writing a checkpoint; returns once the state has been copied off the devices.

        A failure (a full disk) is logged and counted, not raised: training goes on and the next save tries again. A
        failure that only shows in the background is counted by the next `save` or `finish`.

        Returns:
          Whether the write was started.
        """
        self._lost = False
        try:
            self._settle()
            if step in self._manager.all_steps():
                return True
            return self._write(step, state, frame, metrics)
        except Exception as error:  # whatever storage raises, losing a checkpoint must not lose the run
            self._failed(step, error)
            self._lost = True
            return False

    def _write(self, step: int, state: Any, frame: dict[str, Any], metrics: dict[str, float] | None) -> bool:
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), frame=ocp.args.JsonSave(frame))
        return self._manager.save(step, args=items, metrics=metrics or None, force=True)

    def _settle(self) -> None:
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
        self._settle()
        if self.failures > before or self._lost:
            raise CheckpointError(
                f"{self.folder}: the last checkpoint could not be written (see above); last good: {self.steps[-1:] or 'none'}"
            )

    def close(self) -> None:
        self._manager.close()

    def restore(
        self, abstract: Any, step: int | None = None, refuse: Callable[[dict[str, Any]], None] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest readable checkpoint, or that of `step`.

        Args:
          abstract: the state's shapes, dtypes and shardings on the present mesh (any mesh will do).
          refuse: called with the frame before the state is read; raises where the checkpoint is of another kind.

        Returns:
          (step, state, frame), or None where there is no checkpoint at all.

        Raises:
          CheckpointError: `step` is not there, or none can be read.
        """
        steps = self.steps
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step} (there are: {', '.join(map(str, steps)) or 'none'})")
        problems = []
        for candidate in [step] if step is not None else reversed(steps):
            frame = self._read(candidate, problems, frame=ocp.args.JsonRestore())
            if frame is None:
                continue
            if refuse is not None:
                refuse(frame["frame"])
            items = self._read(candidate, problems, state=ocp.args.StandardRestore(abstract))
            if items is not None:
                return candidate, items["state"], frame["frame"]
        if problems:
            raise CheckpointError(f"{self.folder}: no checkpoint can be read:\n  " + "\n  ".join(problems))
        return None

    def frame(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Step and frame (config, tokenizer, preprocessing, positions) of the newest checkpoint, or that of `step`.

        Raises:
          CheckpointError: there is none.
        """
        for candidate in [step] if step is not None else reversed(self.steps):
            problems: list[str] = []
            items = self._read(candidate, problems, frame=ocp.args.JsonRestore())
            if items is not None:
                return candidate, items["frame"]
        raise CheckpointError(f"{self.folder}: no readable checkpoint (there are: {', '.join(map(str, self.steps)) or 'none'})")

    def _read(self, step: int, problems: list[str], **items: Any) -> Any | None:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # a damaged checkpoint is passed over, loudly, for the one before it
            paths.exists(self.folder)  # raises where the store cannot be reached, which is no damage
            problems.append(f"step {step}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            logging.error("checkpoint %d cannot be read and is passed over: %s", step, problems[-1])
            return None


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings, as `restore` wants them."""
    return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
