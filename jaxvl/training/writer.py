"""What a person and the tools see of a run: the progress line, `metrics.jsonl`, TensorBoard.

`metrics.jsonl` has one JSON object a line: `step`, `time` (seconds since the epoch), `kind` (`train`, `eval`, `event`),
`name` (task, evaluator or event) and the scalars. Only process 0 writes.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxvl.evals.shown import brief
from jaxvl.training.meter import ALL

LONGEST_MESSAGE = 5000  # characters of what is said or recorded as a text
_LIBRARY = logging.getLogger("jaxvl")


class Writer:
    """Context manager around a run of `total` steps and so many tasks. All methods take host values."""

    def __init__(self, workdir: pathlib.Path, total: int, *, tensorboard: bool, tasks: int = 1, console: Console | None = None):
        self.workdir, self.total, self.several = workdir, total, tasks > 1
        self.active = jax.process_index() == 0
        self.console = console or Console(stderr=True)
        self._file = open(workdir / "metrics.jsonl", "a", buffering=1) if self.active else None
        self._board = None
        if self.active and tensorboard:
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(workdir / "tb"), flush_secs=10)
        columns = [TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
                   TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn()]  # fmt: skip
        live = self.active and self.console.is_terminal
        self._progress = Progress(*columns, console=self.console, disable=not live, refresh_per_second=2)
        self._bar = self._progress.add_task("train", total=total, figures="")
        self._live = live

        self._heard = _Listener(self)

    def __enter__(self) -> Writer:
        self._progress.start()
        _LIBRARY.addHandler(self._heard)
        self._before = _LIBRARY.level, _LIBRARY.propagate
        _LIBRARY.setLevel(logging.INFO)
        _LIBRARY.propagate = False  # said here, so by nobody else
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        _LIBRARY.removeHandler(self._heard)
        level, _LIBRARY.propagate = self._before
        _LIBRARY.setLevel(level)
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self.active:
            self.console.print(text, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Moves the progress line; cheap enough for every step."""
        self._progress.update(self._bar, completed=step)

    def record(self, step: int, kind: str, name: str, scalars: Mapping[str, Any]) -> None:
        """Writes scalars to every sink. Values that are not finite become null in JSON."""
        if not self.active:
            return
        values = {k: _plain(v) for k, v in scalars.items()}
        line = {"step": step, "time": time.time(), "kind": kind, "name": name, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}/{key}", value, step)
        if kind == "train" and self.several == (name == ALL):  # of several tasks, one line for all together
            self._figures(step, name, values)
        elif kind == "eval":
            whole = {k: v for k, v in values.items() if "/" not in k or k.startswith("skipped/")}  # those of parts, as `fr/…`, are too many
            told = {k: v for k, v in whole.items() if k != "seconds" and not k.endswith(("_low", "_high"))}
            figures = "  ".join(f"{escape(brief(k))} {_short(v)}" for k, v in told.items())
            self.say(f"[bold cyan]{escape(brief(name))}[/] at {step}: {figures}")

    def image(self, step: int, name: str, image: Any) -> None:
        """One uint8 [H, W, 3] picture for TensorBoard."""
        if self._board:
            self._board.add_image(brief(name), image, step, dataformats="HWC")

    def _figures(self, step: int, task: str, values: Mapping[str, Any]) -> None:
        losses = f"{escape(brief(task))} loss {_short(values['loss'])}" + _some(
            {k[5:]: v for k, v in values.items() if k[:5] == "loss/" and task == ALL}
        )
        text = (f"{losses}  {_short(values['examples_per_second'])} ex/s  "
                f"data wait {100 * values['data_wait']:.1f} %")  # fmt: skip
        if values.get("skipped"):
            text += f"  [yellow]skipped {int(values['skipped'])}[/]"
        self._progress.update(self._bar, figures=text)
        if not self._live:
            left = (self.total - step) * values["seconds_per_step"]
            self.say(f"step {step}/{self.total}  {text}  lr {values['lr']:.2e}  eta {int(left) // 60}:{int(left) % 60:02d}")


class _Listener(logging.Handler):
    """What the library logs while a run is on, such as which implementation of a kernel was chosen: once each, said and recorded."""

    def __init__(self, writer: Writer):
        super().__init__(logging.INFO)
        self._writer, self._said = writer, set()

    def emit(self, record: logging.LogRecord) -> None:
        text = brief(record.getMessage(), LONGEST_MESSAGE)
        if text not in self._said:
            self._said.add(text)
            self._writer.record(0, "event", f"log/{record.name}", {"message": text})
            self._writer.say(escape(text))


def _some(losses: Mapping[str, Any], most: int = 3, width: int = 12) -> str:
    """The losses of the first few tasks, so that the line stays a line: ` (images 2.1, videos 1.7, … 5 more)`."""
    names = {t: t if len(t) <= width else f"{t[: width - 1]}…" for t in list(losses)[:most]}
    parts = [f"{escape(name)} {_short(losses[t])}" for t, name in names.items()]
    parts += [f"… {len(losses) - most} more"] if len(losses) > most else []
    return f" ({', '.join(parts)})" if parts else ""


def _plain(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return brief(value, LONGEST_MESSAGE)
    value = float(value)
    return value if math.isfinite(value) else None


def _short(value: Any) -> str:
    if value is None:
        return "not finite"
    return escape(brief(value)) if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
