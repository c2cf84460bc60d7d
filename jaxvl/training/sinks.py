"""Where the figures of a run go: `metrics.jsonl`, TensorBoard, Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import threading
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from absl import logging

from jaxvl.aliases import Node
from jaxvl.config import ConfigError, check

if TYPE_CHECKING:
    import tensorboardX

Value = float | str | None  # None: a figure that is not finite
RUN_FILE = "wandb.json"  # in the workdir: which run of W&B it is


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """A run of Weights & Biases (`pip install "jaxvl[wandb]"`).

    A resumed run goes on in the same one: its id is kept in `workdir/wandb.json`. Online, `wandb
    login` or WANDB_API_KEY comes first.

    Attributes:
      project: where the run is listed.
      entity: user or team; None: the one that is logged in.
      name: of the run; None: the workdir's.
      group, tags: for the list of runs.
      mode: online; or offline, into `workdir/wandb`, to be sent later with `wandb sync`. None: as
        WANDB_MODE says, else online.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline", "disabled"] | None = None

    def __post_init__(self):
        check(bool(self.project), "project", "'' must be the name of a project")

    def check_installed(self) -> None:
        """Raises ConfigError where the package is missing; to be called on every process, so that
        all of them end."""
        found = importlib.util.find_spec("wandb") is not None
        check(
            found,
            "log.wandb",
            "needs the package wandb, which is not installed: pip install 'jaxvl[wandb]'",
        )


class Sink(Protocol):
    """What takes the records of a run. `image` and `close` may do nothing."""

    def record(self, step: int, kind: str, name: str, values: Mapping[str, Value]) -> None:
        """Figures and texts of `name` (a task, an evaluator, an event) after `step` steps."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """One uint8 [H, W, 3] picture."""

    def close(self, failed: bool) -> None:
        """Writes what is left. `failed`: the run ended with an exception."""


class JsonLines(Sink):
    """`metrics.jsonl`: one JSON object a line. A last line that a crash cut short is ended first.

    What cannot be written, as on a full disk, is kept and written once it can be: a run that cannot
    save either goes on.
    """

    def __init__(self, path: pathlib.Path):
        with open(path, "a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.write(b"\n")
        self._file = open(path, "ab", buffering=0)
        self._left = b""
        self._failing = False
        self._lock = threading.Lock()

    def record(self, step: int, kind: str, name: str, values: Mapping[str, Value]) -> None:
        line = {"step": step, "time": time.time(), "kind": kind, "name": name, **values}
        with self._lock:
            self._left += json.dumps(line, allow_nan=False).encode() + b"\n"
            self._write()

    def _write(self) -> None:
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                logging.error("%s: cannot be written at present: %s", self._file.name, error)
            self._failing = True

    def close(self, failed: bool) -> None:
        with self._lock:
            self._write()
            if self._left:
                lost = self._left.count(b"\n")
                logging.error("%s: lacks its last %d lines", self._file.name, lost)
            self._file.close()


class TensorBoard(Sink):
    """Event files in `folder`. The thread that writes one ends where it cannot write, as on a full
    disk; then later figures go into a new file, once there can be one."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._board = self._open()

    def _open(self) -> tensorboardX.SummaryWriter:
        import tensorboardX

        # Of a queue with an end, a step would wait for a thread that is gone.
        return tensorboardX.SummaryWriter(str(self._folder), max_queue=0, flush_secs=10)

    def _usable(self) -> bool:
        """Whether what is given to the board is written; makes a new one where it is not."""
        events = self._board.file_writer.event_writer
        if events._worker is not None and events._worker.is_alive():
            return True
        if not events._closed:
            logging.error("%s: cannot be written at present", self._folder)
        events._closed = True  # neither now nor at the end of the process
        try:
            self._board = self._open()
        except OSError:
            return False
        return True

    def record(self, step: int, kind: str, name: str, values: Mapping[str, Value]) -> None:
        if self._usable():
            for key, value in numbers(values).items():
                self._board.add_scalar(f"{kind}/{name}/{key}", value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        if self._usable():
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        try:
            self._board.close()
        except OSError as error:
            logging.error("%s: lacks its last figures: %s", self._folder, error)


class Wandb(Sink):
    """A run of Weights & Biases, the one that `workdir` had before.

    Every figure is drawn over `step`, the run's own count, and not over W&B's, which may only grow:
    a resumed run repeats the steps since its checkpoint.

    Args:
      folder: a local one, for the id of the run and its files.
      name: of the run, unless `options` has one.
      config: shown with the run.

    Raises:
      ConfigError: W&B cannot be started, for want of a key or a network, say.
    """

    def __init__(self, options: WandbConfig, folder: pathlib.Path, name: str, config: Node):
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(silent=True, console="off")
        try:
            self._run = wandb.init(
                project=options.project,
                entity=options.entity,
                name=options.name or name,
                group=options.group,
                tags=options.tags or None,
                mode=options.mode,
                id=_run_id(options, folder / RUN_FILE),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=settings,
            )
        except Exception as error:  # W&B raises errors of many kinds
            reason = str(error).strip().splitlines()
            raise ConfigError(
                "log.wandb", f"cannot be started: {reason[0] if reason else type(error).__name__}"
            ) from None
        self.url: str | None = None if self._run.offline else self._run.url
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def record(self, step: int, kind: str, name: str, values: Mapping[str, Value]) -> None:
        figures = {f"{kind}/{name}/{key}": value for key, value in numbers(values).items()}
        if figures:
            self._run.log({"step": step, **figures})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _run_id(options: WandbConfig, path: pathlib.Path) -> str:
    """The id in `path`, where that is a run of the same project; else a new one, which is kept
    there."""
    place = {"project": options.project, "entity": options.entity}
    try:
        kept = json.loads(path.read_text())
        if {key: kept.get(key) for key in place} == place and isinstance(kept.get("id"), str):
            return kept["id"]
    except (OSError, ValueError, AttributeError):
        pass  # there is none yet, or the file holds something else
    new = uuid.uuid4().hex[:8]
    path.write_text(json.dumps({"id": new, **place}))
    return new


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Those that can be drawn: no texts, and nothing that is not finite."""
    return {key: value for key, value in values.items() if isinstance(value, (int, float))}
