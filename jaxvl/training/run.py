"""A run that is ready to train: everything that the loop in `train.py` uses."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from jaxvl.config import to_dict
from jaxvl.data.feed import Feed
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.encoders import Encoders
from jaxvl.models.functional import Functional
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.experiment import Experiment
from jaxvl.training.schedule import Turn, Turns
from jaxvl.training.state import TrainState
from jaxvl.training.step import Metrics
from jaxvl.training.writer import Writer


@dataclasses.dataclass
class Run:
    """Everything that the loop in `train.py` uses.

    Attributes:
      start, total: first step of this process and number of steps of the run.
      schedule: step -> turn: the task or tasks that it runs.
      steps: turn -> its compiled step, (state, batches) -> (state, metrics), one batch and one set of metrics per task.
      feeds: task -> iterator of global batches.
    """

    experiment: Experiment
    workdir: pathlib.Path
    mesh: Mesh
    model: Functional
    tokenizer: Tokenizer
    preprocess: Preprocess
    state: TrainState
    start: int
    total: int
    schedule: Turns
    steps: dict[Turn, Callable[..., tuple[TrainState, tuple[Metrics, ...]]]]
    feeds: dict[str, Feed]
    checkpoints: Checkpoints
    encode: Encoders
    writer: Writer
    latest: dict[str, float] = dataclasses.field(default_factory=dict)

    def frame(self) -> dict[str, Any]:
        """What is saved beside the state."""
        return {
            "config": to_dict(self.experiment),
            "tokenizer": self.tokenizer.to_json(),
            "preprocess": self.preprocess.to_json(),
            "positions": {t: f.position for t, f in self.feeds.items()},
            "skipped_records": {t: dict(f.skipped) for t, f in self.feeds.items()},
            "metrics": self.latest,
            "averages": ["params", "rest"],  # what `optim.ema` is of; older checkpoints, without this entry, averaged params alone
        }

    def encoders(self, state: TrainState) -> Encoders:
        """The model's encode functions with the evaluation weights of `state`."""
        return self.encode.with_weights((state.eval_params, state.eval_rest))

    def due(self, step: int) -> Iterator[tuple[str, Any]]:
        """Evaluators to run after `step` steps; all of them after the last one."""
        for name, evaluator in self.experiment.evals.items():
            if step == self.total or (evaluator.every and step % evaluator.every == 0):
                yield name, evaluator

    def close(self) -> None:
        for feed in self.feeds.values():
            feed.close()
        self.checkpoints.close()
