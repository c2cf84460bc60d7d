"""A run that is ready to train: everything that the loop in `train.py` uses."""

from __future__ import annotations

import collections
import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh
from rich.markup import escape

from jaxvl import paths
from jaxvl.config import to_dict
from jaxvl.data.feed import Feed
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals import GalleryRow
from jaxvl.evals.contract import Evaluator
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.report import save_gallery
from jaxvl.models.functional import Functional
from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import Checkpoints, Frame
from jaxvl.training.cost import Cost
from jaxvl.training.experiment import Experiment
from jaxvl.training.figures import Figures
from jaxvl.training.guard import Watch
from jaxvl.training.jobs import RunJobs
from jaxvl.training.schedule import Turn, Turns
from jaxvl.training.state import FORM, TrainState
from jaxvl.training.step import Metrics
from jaxvl.training.writer import Writer


class EvaluationError(RuntimeError):
    """Evaluators failed in a run that is otherwise done.

    Attributes:
      failed: evaluator -> why.
      latest: the figures that there are, `EVALUATOR/METRIC` -> value.
    """

    def __init__(self, failed: Mapping[str, str], latest: dict[str, float]):
        super().__init__("; ".join(f"{name}: {why}" for name, why in failed.items()))
        self.failed = dict(failed)
        self.latest = latest


@dataclasses.dataclass
class Run:
    """Everything that the loop in `train.py` uses.

    Attributes:
      start, total: first step of this process and number of steps of the run.
      schedule: step -> turn: the task or tasks that it runs.
      steps: turn -> its compiled step, (state, batches) -> (state, metrics), one batch and one set
        of metrics per task.
      costs: turn -> what its step costs.
      feeds: task -> iterator of global batches.
      jobs: what is computed over whole sources, after the last step or every so many.
      figures: what the evaluators have measured.
      abstract: shapes and shardings of the state.
      watch: which steps were not applied.
      failed: evaluator -> why it failed, of those that did in this process.
    """

    experiment: Experiment
    workdir: paths.Path
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
    jobs: RunJobs
    writer: Writer
    figures: Figures
    abstract: TrainState
    watch: Watch = dataclasses.field(default_factory=Watch)
    costs: dict[Turn, Cost] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def take_state(self) -> TrainState:
        """The state, once: its buffers are donated to the first step, so nobody else may hold
        them."""
        state = self.state
        self.state = None
        return state

    def skipped_records(self) -> dict[str, dict[str, int]]:
        """Task -> cause -> bad records that steps of the run have met, of all processes, which all
        call this together."""
        found = {}
        for task, own in hosts.add_up(
            {task: feed.skipped for task, feed in self.feeds.items()}
        ).items():
            found[task] = dict(
                collections.Counter(self.feeds[task].skipped_before) + collections.Counter(own)
            )
        return found

    def frame(self) -> Frame:
        """What is saved beside the state; `Checkpoints` adds the step. All processes call it
        together."""
        return {
            "config": to_dict(self.experiment),
            "tokenizer": self.tokenizer.to_json(),
            "preprocess": self.preprocess.to_json(),
            "positions": {t: f.position for t, f in self.feeds.items()},
            "positions_in": "records",
            "task_steps": {t: f.steps for t, f in self.feeds.items()},
            "samplers": {t: f.sampler_state for t, f in self.feeds.items()},
            "data": {t: f.identity for t, f in self.feeds.items()},
            "skipped_records": self.skipped_records(),
            "gaps": {t: [list(span) for span in f.gaps.spans] for t, f in self.feeds.items()},
            "guard": self.watch.frame(),
            "metrics": self.figures.latest,
            "form": FORM,  # of the state, see `state.saved_form`
        }

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save the state after `step` steps. All processes call it together."""
        first_bad = self.watch.first_bad
        if step == self.total:
            self.checkpoints.held = None
        elif self.experiment.guard.rollback:
            self.checkpoints.hold_regular(step if first_bad is None else first_bad - 1)
        self.checkpoints.save(step, state, self.frame())

    def encoders(self, state: TrainState) -> Encoders:
        """The model's encode functions with the evaluation weights of `state`."""
        return self.encode.with_weights(state.weights(self.experiment.optim.evaluated))

    def due(self, step: int) -> dict[str, Evaluator]:
        """Evaluators to run with the weights of `step`, without those that have; all of them after
        the last step."""
        due = {}
        for name, evaluator in self.experiment.evals.items():
            now = step == self.total or (
                evaluator.every and step > 0 and step % evaluator.every == 0
            )
            if now and not self.figures.has(step, name):
                due[name] = evaluator
        return due

    def save_due(self, step: int) -> bool:
        """Whether to save after `step` steps."""
        scored = self.experiment.checkpoint.best_evaluator in self.due(step)
        working = bool(self.jobs.due(step))
        return self.checkpoints.due(step) or scored or working or step == self.total

    def note_figures(self, step: int, name: str, metrics: dict[str, float], seconds: float) -> None:
        """Records what an evaluator measured with the weights of `step`."""
        self.figures.add(step, name, metrics)
        self.checkpoints.score(step, self.figures.at(step))
        self.failed.pop(name, None)
        self.writer.record(step, "eval", name, {**metrics, "seconds": seconds})

    def keep_gallery(self, step: int, name: str, gallery: Sequence[GalleryRow]) -> None:
        """Keeps an evaluator's pictures for the report and TensorBoard; figures without pictures
        are better than none."""
        if not gallery or jax.process_index() != 0:
            return
        try:
            sheet = save_gallery(self.workdir, name, step, gallery)
        except Exception as error:
            self.note_failure(step, name, error)
        else:
            self.writer.image(step, f"gallery/{name}", sheet)

    def note_failure(self, step: int, name: str, error: Exception) -> None:
        """Records and shows that an evaluator failed with the weights of `step`."""
        why = f"{type(error).__name__}: {error}"
        self.failed[name] = why
        trace = "".join(traceback.format_exception(error))
        self.writer.record(step, "event", f"failed/{name}", {"error": why, "traceback": trace})
        self.writer.say(
            f"[bold red]evaluator {name} failed at {step}[/] {escape(why)}; training goes on"
        )

    def close(self) -> None:
        for feed in self.feeds.values():
            feed.close()
        self.checkpoints.close()
