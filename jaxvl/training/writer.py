"""What a person and the tools see of a run: the progress line, `metrics.jsonl`, TensorBoard,
Weights & Biases.

`metrics.jsonl` has one JSON object a line: `step`, `time` (seconds since the epoch), `kind`
(`train`, `eval`, `event`), `name` (task, evaluator or event) and the scalars. Only process 0
writes.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxvl import paths
from jaxvl.aliases import Node
from jaxvl.evals.shown import brief
from jaxvl.training.growing import GrowingFiles
from jaxvl.training.sinks import RUN_FILE, JsonLines, Sink, TensorBoard, Value, Wandb, WandbConfig
from jaxvl.training.terminal import Terminal

LONGEST_MESSAGE = 5000  # characters of what is said or recorded as a text
_LIBRARY = logging.getLogger("jaxvl")


class Writer:
    """Context manager around a run. All methods take host values.

    Args:
      total: steps of the run. tasks: how many it has.
      tensorboard, wandb: see `LogConfig`.
      config: the whole config, for those that show it.

    Raises:
      ConfigError: W&B is asked for and is not installed, or does not start.
    """

    def __init__(
        self,
        workdir: paths.Path,
        total: int,
        *,
        tensorboard: bool,
        tasks: int = 1,
        wandb: WandbConfig | None = None,
        config: Node | None = None,
        console: Console | None = None,
    ):
        self.workdir = workdir
        self.total = total
        self.active = jax.process_index() == 0
        self._terminal = Terminal(
            console or Console(stderr=True), total, tasks, quiet=not self.active
        )
        self._heard = _Listener(self)
        self._sinks: list[Sink] = []
        self._growing: GrowingFiles | None = None
        if wandb is not None:
            wandb.check_installed()
        if not self.active:
            return
        self._growing = GrowingFiles(workdir)
        self._sinks += [JsonLines(self._growing.resume("metrics.jsonl")), self._terminal]
        if tensorboard:
            self._sinks.append(TensorBoard(self._growing.folder / "tb"))
        if wandb is not None:
            self._growing.resume(RUN_FILE)
            run = Wandb(wandb, self._growing.folder, paths.absolute(workdir).name, config or {})
            self._sinks.append(run)
            if run.url:
                self.say(f"W&B: {run.url}")

    def __enter__(self) -> Writer:
        self._terminal.start()
        _LIBRARY.addHandler(self._heard)
        self._before = _LIBRARY.level, _LIBRARY.propagate
        _LIBRARY.setLevel(logging.INFO)
        _LIBRARY.propagate = False  # said here, so by nobody else
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        _LIBRARY.removeHandler(self._heard)
        level, _LIBRARY.propagate = self._before
        _LIBRARY.setLevel(level)
        for sink in self._sinks:
            sink.close(failed=kind is not None)
        if self._growing is not None:
            self._growing.close()

    @property
    def folder(self) -> pathlib.Path | None:
        """Local folder whose files get into the work folder; the work folder itself where that is
        local. Only in process 0."""
        return None if self._growing is None else self._growing.folder

    def flush(self, *, wait: bool = True) -> None:
        """Brings what has been written to the work folder, where that is remote; without `wait`, in
        the background."""
        if self._growing is not None:
            self._growing.flush(wait=wait)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        self._terminal.say(text)

    def advance(self, step: int) -> None:
        """Moves the progress line; cheap enough for every step."""
        self._terminal.advance(step)

    def record(
        self, step: int, kind: str, name: str, scalars: Mapping[str, Value | np.generic | jax.Array]
    ) -> None:
        """Writes scalars to every sink. Values that are not finite become None."""
        values = {key: _plain(value) for key, value in scalars.items()}
        for sink in self._sinks:
            sink.record(step, kind, name, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """One uint8 [H, W, 3] picture for the sinks that show pictures."""
        for sink in self._sinks:
            sink.image(step, brief(name), image)


class _Listener(logging.Handler):
    """What the library logs while a run is on, such as which implementation of a kernel was chosen:
    once each, said and recorded."""

    def __init__(self, writer: Writer):
        super().__init__(logging.INFO)
        self._writer = writer
        self._said = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = brief(record.getMessage(), LONGEST_MESSAGE)
        if text not in self._said:
            self._said.add(text)
            self._writer.record(0, "event", f"log/{record.name}", {"message": text})
            self._writer.say(escape(text))


def _plain(value: Value | np.generic | jax.Array) -> Value:
    if value is None:
        return None
    if isinstance(value, str):
        return brief(value, LONGEST_MESSAGE)
    value = float(value)
    return value if math.isfinite(value) else None
