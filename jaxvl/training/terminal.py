"""What a person sees of a run: the progress line in a terminal, a line for every record where the
output is piped."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from jaxvl.data.bottlenecks import SLOW, STAGES
from jaxvl.evals.shown import brief
from jaxvl.training.meter import ALL
from jaxvl.training.sinks import Sink, Value

_BESIDE = ("_low", "_high")  # ends of figures that are shown with another one


class Terminal(Sink):
    """Shows the records of a run of `total` steps and so many tasks.

    The progress line stays one line: figures that do not fit the terminal's width are cut at the
    end.

    Args:
      quiet: show nothing (this is not the first process).
    """

    def __init__(self, console: Console, total: int, tasks: int, quiet: bool = False):
        self._console = console
        self._total = total
        self._tasks = tasks
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        figures = TextColumn(
            "{task.fields[figures]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        )
        columns = [
            BarColumn(8),
            MofNCompleteColumn(),
            figures,
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(True),
        ]
        self._progress = Progress(
            *columns, console=console, disable=not self._live, refresh_per_second=2, expand=True
        )
        self._bar = self._progress.add_task("train", total=total, figures="")

    def start(self) -> None:
        self._progress.start()

    def say(self, text: str) -> None:
        """One line, with rich's markup."""
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        self._progress.update(self._bar, completed=step)

    def record(self, step: int, kind: str, name: str, values: Mapping[str, Value]) -> None:
        if kind == "train" and (self._tasks > 1) == (
            name == ALL
        ):  # of several tasks, one line for all together
            text = figures_of(name, values)
            self._progress.update(self._bar, figures=text)
            if not self._live:
                left = int((self._total - step) * values["seconds_per_step"])
                rate = f"lr {values['lr']:.2e}  eta {left // 60}:{left % 60:02d}"
                self.say(f"step {step}/{self._total}  {text}  {rate}")
        elif kind == "eval":
            # Figures of parts, as `fr/…`, are too many.
            whole = {k: v for k, v in values.items() if "/" not in k or k.startswith("skipped/")}
            told = {k: v for k, v in whole.items() if k != "seconds" and not k.endswith(_BESIDE)}
            figures = "  ".join(f"{escape(brief(k))} {short(v)}" for k, v in told.items())
            self.say(f"[bold cyan]{escape(brief(name))}[/] at {step}: {figures}")

    def close(self, failed: bool) -> None:
        self._progress.stop()


def figures_of(task: str, values: Mapping[str, Value]) -> str:
    """The figures of a record that a person follows, the most important first.

    `ex/s/chip` where there are several devices. Without a known peak the reached TFLOP/s stand in
    for MFU.
    """
    parts = [f"loss {short(values['loss'])}"]
    if task == ALL:
        parts[0] += some_losses(
            {k.removeprefix("loss/"): v for k, v in values.items() if k.startswith("loss/")}
        )
    if values.get("skipped"):
        parts.append(f"[yellow]skipped {int(values['skipped'])}[/]")
    rate = values["examples_per_second"]
    per_chip = values["examples_per_second_per_chip"]
    chip = "" if rate == per_chip else "/chip"
    parts.append(f"{short(per_chip)} ex/s{chip}")
    if "mfu" in values:
        parts.append(f"MFU {100 * values['mfu']:.1f} %")
    elif "tflops_per_chip" in values:
        parts.append(f"{values['tflops_per_chip']:.3g} TFLOP/s{chip}")
    parts.append(f"data wait {100 * values['data_wait']:.1f} %{_limit(values)}")
    return "  ".join(parts)


def _limit(values: Mapping[str, Value]) -> str:
    """Names the stage of the input that takes longest, where steps wait for it."""
    worked = {stage: values[f"input_{stage}"] for stage in STAGES if f"input_{stage}" in values}
    if not worked or values["data_wait"] < SLOW:
        return ""
    return f" [yellow]({max(worked, key=worked.get)})[/]"


def some_losses(losses: Mapping[str, Value], most: int = 3, width: int = 12) -> str:
    """The losses of the first few tasks: ` (images 2.1, videos 1.7, … 5 more)`."""
    names = {t: t if len(t) <= width else f"{t[: width - 1]}…" for t in list(losses)[:most]}
    parts = [f"{escape(name)} {short(losses[t])}" for t, name in names.items()]
    parts += [f"… {len(losses) - most} more"] if len(losses) > most else []
    return f" ({', '.join(parts)})" if parts else ""


def short(value: Value) -> str:
    """A figure in four digits."""
    if value is None:
        return "not finite"
    if isinstance(value, str):
        return escape(brief(value))
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
