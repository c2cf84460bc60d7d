"""How much a model of several stages has forgotten, from what its evaluators recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvl import paths
from jaxvl.config import check
from jaxvl.evals.recorded import read_metrics


def forgetting(figures: np.ndarray) -> float:
    """Average forgetting after the last stage (Chaudhry et al. 2018, arXiv 1801.10112, equation 3).

        F = 1/(K-1) sum_{j<K} ( max_{l<K} a_lj - a_Kj )

    Below zero where later stages helped earlier tasks.

    Args:
      figures: float [K, K], of task j after stage l; more is better. The tasks are in the order in
        which stages learn them. NaN where a task was not evaluated.

    Returns:
      The mean over the tasks before the last one.

    Raises:
      ConfigError: shapes that do not fit; a task without a figure after the last stage, or without
        one before it.
    """
    return float(np.mean(forgetting_by_task(figures)))


def forgetting_by_task(figures: np.ndarray) -> np.ndarray:
    """`max_{l<K} a_lj - a_Kj` of each task j but the last, float64 [K-1]; see `forgetting`."""
    a = np.asarray(figures, np.float64)
    square = a.ndim == 2 and a.shape[0] == a.shape[1] >= 2
    check(square, "figures", f"shape {a.shape} is not valid; must be (K, K) of K >= 2 stages")
    earlier = a[:-1, :-1]
    last = a[-1, :-1]
    for j in range(len(last)):
        check(not np.isnan(last[j]), "figures", f"task {j} has none after the last stage")
        check(not np.isnan(earlier[:, j]).all(), "figures", f"task {j} has none before the last")
    return np.nanmax(earlier, axis=0) - last


def recorded_figures(stages: Sequence[paths.Path], figures: Sequence[str]) -> np.ndarray:
    """Figures as they stood after the last step of each stage, for `forgetting`.

    Args:
      stages: folders with a `metrics.jsonl`, one a stage, in order.
      figures: `EVALUATOR/FIGURE` of each task, in the order of the stages that learn them.

    Returns:
      float64 [stages, figures], NaN where a stage did not record a figure.

    Raises:
      ConfigError: a figure without an evaluator's name; one that no stage recorded.
    """
    out = np.full((len(stages), len(figures)), np.nan)
    for i, stage in enumerate(stages):
        known = [r for r in read_metrics(stage / "metrics.jsonl") if r["kind"] == "eval"]
        latest = {record["name"]: record for record in known}
        for j, figure in enumerate(figures):
            evaluator, _, name = figure.partition("/")
            check(
                bool(name), "figures", f"{figure!r} must name an evaluator's, as EVALUATOR/FIGURE"
            )
            value = latest.get(evaluator, {}).get(name)
            out[i, j] = np.nan if value is None else value
    for j, figure in enumerate(figures):
        check(not np.isnan(out[:, j]).all(), "figures", f"{figure!r} was recorded by no stage")
    return out
