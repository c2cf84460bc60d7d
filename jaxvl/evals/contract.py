"""What an evaluator promises, and the check of a run's evaluators before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.sources.base import SourceConfig
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.result import EvalResult


@runtime_checkable
class Evaluator(Protocol):
    """A registered frozen dataclass; `source_options.SourceOptions` is a base that has all of this
    but `figures` and `run`.

    Attributes:
      sources: configs of all sources that it reads; they are opened before it is checked.
      every: steps between two runs in the training loop; 0: only after the last step.
      figures: names of the figures that `run` can give. One that ends in `*` stands for all that
        begin so.
    """

    every: int

    @property
    def sources(self) -> tuple[SourceConfig, ...]: ...

    @property
    def figures(self) -> tuple[str, ...]: ...

    def check(self, encoders: Encoders) -> None:
        """Raises ConfigError, at one of its own fields, where model and source are not what `run`
        needs.

        It computes nothing on the devices: the weights of `encoders` may be shapes. It is called in
        every process. `name` is the field of the evaluator's kind: the model cannot do what that
        needs.
        """

    def run(self, encoders: Encoders) -> EvalResult:
        """Evaluates. Every process calls it and gets the same result.

        Raises:
          DataError: there is nothing to evaluate, or more bad records than the error budget allows.
          EvaluatorError: an error that is no bad record.
        """


def check_evaluators(
    evaluators: Mapping[str, Evaluator], encoders: Encoders, best_metric: str | None = None
) -> None:
    """Checks all evaluators of a run against its model and data.

    Args:
      evaluators: name -> evaluator.
      encoders: of the run's model; their weights may be shapes.
      best_metric: `checkpoint.best_metric` of the run: `EVALUATOR/FIGURE`, `-` before it where less
        is better.

    Raises:
      ConfigError: under `evals.NAME`, what an evaluator cannot do; at `checkpoint.best_metric`, a
        figure that its evaluator does not give.
    """
    for name, evaluator in evaluators.items():
        path = f"evals.{name}"
        known = isinstance(evaluator, Evaluator)
        check(
            known,
            f"{path}.name",
            f"{type(evaluator).__name__} must have check(encoders), figures and "
            f"run(encoders); see evals/contract.py",
        )
        try:
            evaluator.check(encoders)
        except ConfigError as error:
            raise error.under(path) from None
    if best_metric is not None:
        _check_metric(evaluators, best_metric)


def _check_metric(evaluators: Mapping[str, Evaluator], metric: str) -> None:
    name, _, figure = metric.removeprefix("-").partition("/")
    evaluator = evaluators.get(name)
    if evaluator is None:
        return  # `Experiment` says so
    problem = (
        f"{metric!r}: evaluator {name!r} does not give {figure!r}"
        if figure
        else f"{metric!r} must name a figure, as {name}/FIGURE"
    )
    hint = f"{nearest(figure, evaluator.figures)} (its figures: {', '.join(evaluator.figures)})"
    check(gives(evaluator, figure), "checkpoint.best_metric", problem + hint)


def gives(evaluator: Evaluator, figure: str) -> bool:
    """Whether an evaluator's `figures` hold this one."""
    return any(
        figure == name
        or name.endswith("*")
        and figure.startswith(name[:-1])
        and figure != name[:-1]
        for name in evaluator.figures
    )
