"""What the evaluators of a run have measured, by step: read from `metrics.jsonl` on a resume, added
to while training."""

from __future__ import annotations

from jaxvl import paths
from jaxvl.evals.report import read_metrics
from jaxvl.sharding import hosts

_NOT_A_FIGURE = ("step", "time", "kind", "name", "seconds")


class Figures:
    """Figures of the evaluators of one run, the same in every process.

    Args:
      workdir: whose `metrics.jsonl` holds earlier figures.
      until: figures of later steps are left out; the run is going to measure them again.
    """

    def __init__(self, workdir: paths.Path, until: int):
        self._by_step: dict[int, dict[str, dict[str, float]]] = {}
        earlier = hosts.from_process_0(lambda: read_figures(workdir, until))
        for step, name, figures in earlier:
            self.add(step, name, figures)

    def add(self, step: int, name: str, figures: dict[str, float]) -> None:
        """Notes the figures (metric -> value) of evaluator `name` with the weights of `step`."""
        self._by_step.setdefault(step, {})[name] = figures

    def forget(self, after: int) -> None:
        """Drops the figures of later steps than `after`, which will be measured again."""
        self._by_step = {step: found for step, found in self._by_step.items() if step <= after}

    def has(self, step: int, name: str) -> bool:
        """Whether evaluator `name` has run with the weights of `step`."""
        return name in self._by_step.get(step, {})

    @property
    def steps(self) -> list[int]:
        """Steps whose weights were evaluated, oldest first."""
        return sorted(self._by_step)

    def at(self, step: int) -> dict[str, float]:
        """`EVALUATOR/METRIC` -> value, with the weights of `step`."""
        found = self._by_step.get(step, {})
        return {f"{name}/{key}": v for name, figures in found.items() for key, v in figures.items()}

    @property
    def latest(self) -> dict[str, float]:
        """`EVALUATOR/METRIC` -> value, of each evaluator's last run."""
        last: dict[str, dict[str, float]] = {}
        for step in self.steps:
            last |= self._by_step[step]
        return {f"{name}/{key}": v for name, figures in last.items() for key, v in figures.items()}


def read_figures(workdir: paths.Path, until: int) -> list[tuple[int, str, dict[str, float]]]:
    """(step, evaluator, metric -> value) of a run, as this process reads them."""
    found = []
    for record in read_metrics(workdir / "metrics.jsonl"):
        if record["kind"] == "eval" and record["step"] <= until:
            figures = {k: v for k, v in record.items() if k not in _NOT_A_FIGURE}
            found.append((record["step"], record["name"], figures))
    return found
