"""A search as tables for people."""

from __future__ import annotations

from rich.console import Console

from jaxvl.planning.roofline import MODEL
from jaxvl.planning.search import FITS, GIB, Search, Trial, describe
from jaxvl.planning.show import table

BEST = 5
LOSERS = 15


def show_search(console: Console, found: Search) -> None:
    fitting = [trial for trial in found.trials if trial.outcome == FITS]
    compiled = sum(trial.compile_seconds > 0 for trial in found.trials)
    console.print(
        f"{found.devices} x {found.topology}: {len(found.trials)} candidates, {compiled} compiled "
        f"in {found.spent:.0f} s (budget {found.budget:.0f} s), {len(fitting)} fit into "
        f"{found.memory / GIB:.1f} GiB"
    )
    if fitting:
        headings = ("best", "limited by", "GiB a device", "seconds a step", "examples/s")
        console.print(table(headings, map(_row, fitting[:BEST]), left=2))
        options = fitting[0].assignments
        words = " ".join(f"--config.{key}={value}" for key, value in options.items())
        console.print(f"best: {words or 'the config as it is'}", soft_wrap=True, markup=False)
        console.print(f"seconds: {MODEL}")
    losers = [trial for trial in found.trials if trial not in fitting[:BEST]]
    if losers:
        rows = [(describe(t.candidate), t.outcome, _why(t, fitting)) for t in losers[:LOSERS]]
        console.print(table(("lost", "outcome", "why"), rows, left=3))
    if len(losers) > LOSERS:
        console.print(f"and {len(losers) - LOSERS} more (all in --json)")


def _row(trial: Trial) -> tuple[str, ...]:
    low, high = trial.seconds
    slow, fast = trial.examples_per_second
    return (
        describe(trial.candidate),
        trial.limit,
        f"{trial.needed / GIB:.2f}",
        f"{low:.3f} - {high:.3f}",
        f"{slow:,.0f} - {fast:,.0f}",
    )


def _why(trial: Trial, fitting: list[Trial]) -> str:
    if trial.outcome != FITS:
        return trial.reason
    return f"{trial.seconds[1] / fitting[0].seconds[1]:.2f} x the best's time, by {trial.limit}"
