"""Builds a run from its config: data, tokenizer, mesh, model, state, compiled steps, feeds, evaluators, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvl.config import ConfigError, check, nearest, override, resolve, to_dict
from jaxvl.data.loader import Feed
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer, make_tokenizer
from jaxvl.evals.encoders import Encoders
from jaxvl.models.functional import Functional, functional
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.tasks import Task
from jaxvl.training.checkpoint import CheckpointError, Checkpoints, abstract_state
from jaxvl.training.cost import Cost
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Experiment
from jaxvl.training.judges import make_judges
from jaxvl.training.optim import learning_rate, optimiser
from jaxvl.training.rollout import Judge, roll_out
from jaxvl.training.state import TrainState, init_state, state_shardings
from jaxvl.training.step import compile_step, make_step
from jaxvl.training.writer import Writer

Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


class Vocabulary(NamedTuple):
    """What a model has to know of a tokenizer."""

    vocab_size: int
    pad_id: int
    eos_id: int | None


@dataclasses.dataclass
class Run:
    """Everything that the loop in `train.py` uses.

    Attributes:
      start, total: first step of this process and number of steps of the run.
      steps: task -> compiled step. feeds: task -> iterator of global batches.
      schedule: step -> task.
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
    schedule: Callable[[int], str]
    steps: dict[str, Step]
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
        }

    def encoders(self, state: TrainState) -> Encoders:
        """The model's encode functions with the evaluation weights of `state`."""
        return self.encode.with_weights((state.eval_params, state.rest))

    def due(self, step: int) -> Iterator[tuple[str, Any]]:
        """Evaluators to run after `step` steps; all of them after the last one."""
        for name, evaluator in self.experiment.evals.items():
            if step == self.total or (evaluator.every and step % evaluator.every == 0):
                yield name, evaluator

    def close(self) -> None:
        for feed in self.feeds.values():
            feed.close()
        self.checkpoints.close()


def setup(experiment: Experiment, mesh: Mesh, workdir: pathlib.Path, writer: Writer) -> Run:
    """Builds the run under `jax.set_mesh(mesh)`, and restores the newest checkpoint of `workdir` where there is one.

    Raises:
      ConfigError: sizes that do not fit; a checkpoint in `workdir` of another model or tokenizer.
    """
    check(bool(experiment.tasks), "tasks", "must name at least one task")
    experiment.check_mesh(mesh)
    preprocess = experiment.preprocess
    tasks = {name: Task(name, config, preprocess) for name, config in experiment.tasks.items()}
    corpora = prepare_corpora(experiment, writer.say)
    checkpoints = Checkpoints(workdir / "checkpoints", experiment.checkpoint)
    base = initial_weights(experiment) if experiment.init_from is not None and not checkpoints.steps else None
    if experiment.init_from is None:
        tokenizer = task_tokenizer(experiment, corpora)
    else:  # a run that is resumed does not need the weights that it began with
        tokenizer = base.tokenizer if base is not None else Tokenizer.from_json(checkpoints.frame()[1]["tokenizer"])
    model = build_model(experiment, tokenizer)
    judges = make_judges(experiment, model, tokenizer)
    fresh, shapes, shardings = fresh_state(experiment, model, mesh, judges)
    abstract = abstract_state(shapes, shardings)
    frame = {"tokenizer": tokenizer.to_json(), "preprocess": preprocess.to_json(), "config": to_dict(experiment)}
    restored = checkpoints.restore(abstract, refuse=functools.partial(refuse_other, frame))
    if restored is None:
        start, state, positions = 0, jax.jit(fresh, out_shardings=shardings)(), {}
        state = seat_judges(state if base is None else base.put_into(state, model, shardings), shardings, judges)
    else:
        start, state, saved = restored
        positions = saved["positions"]
        writer.say(f"resuming from step {start} of {workdir}")

    feeds = {
        name: Feed(
            task.config.data, corpora[task.config.data.corpus], tokenizer, seed=experiment.seed + i, mesh=mesh, start=positions.get(name, 0)
        )
        for i, (name, task) in enumerate(tasks.items())  # tasks on one corpus draw different records
    }
    steps = compile_all(experiment, tasks, model, abstract, shardings, mesh, writer, judges)
    return Run(experiment, workdir, mesh, model, tokenizer, preprocess, state, start, experiment.steps,
               experiment.schedule.build(list(tasks), experiment.steps), steps, feeds, checkpoints,
               make_encoders(experiment, model, tokenizer, mesh), writer)  # fmt: skip


def prepare_corpora(experiment: Experiment, log: Callable[[str], None]) -> dict[Any, Any]:
    """Corpus config -> prepared corpus, for all tasks and evaluators; built once each."""
    configs = {t.data.corpus for t in experiment.tasks.values()} | {e.corpus for e in experiment.evals.values()}
    corpora = {config: config.prepare(log=log) for config in configs}
    for name, task in experiment.tasks.items():
        split, splits = task.data.split, corpora[task.data.corpus].splits
        check(
            split in splits,
            f"tasks.{name}.data.split",
            f"{split!r} is not a split of the corpus{nearest(split, splits)} (splits: {', '.join(splits)})",
        )
    return corpora


def task_tokenizer(experiment: Experiment, corpora: dict[Any, Any]) -> Tokenizer:
    """The tokenizer; a vocabulary that is trained is trained on the captions of the first task's split."""
    data = next(iter(experiment.tasks.values())).data
    corpus = corpora[data.corpus]
    locales = data.captions.locales
    return make_tokenizer(experiment.tokenizer, corpus.texts(data.split, locales), f"{corpus.folder.name}/{data.split}/{locales}")


def build_model(experiment: Experiment, tokenizer: Tokenizer | Vocabulary) -> Functional:
    """Raises ConfigError where model and inputs do not fit."""
    inputs = experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    try:
        return functional(experiment.model, inputs, jnp.dtype(experiment.dtype))
    except ConfigError as error:
        raise error.under("model") from None


def fresh_state(
    experiment: Experiment, model: Functional, mesh: Mesh, judges: Mapping[str, Judge] = {}
) -> tuple[Callable[[], TrainState], TrainState, TrainState]:
    """A function that makes the first state, the state's shapes, and its shardings on `mesh`."""
    tasks = {name: Task(name, config, experiment.preprocess) for name, config in experiment.tasks.items()}
    tx, trained = optimiser(experiment.optim, model.axes, model.locked)
    ema = experiment.optim.ema is not None
    fresh = functools.partial(init_state, model, tx, trained, tasks=tasks, seed=experiment.seed, ema=ema, judges=judges)
    shapes = jax.eval_shape(fresh)
    return fresh, shapes, state_shardings(model, shapes, mesh)


def seat_judges(state: TrainState, shardings: TrainState, judges: Mapping[str, Judge]) -> TrainState:
    """A fresh state with every judge's weights in their place."""
    aux = dict(state.aux)
    for slot, judge in judges.items():
        if judge.source != "ema":
            source = state if judge.source == "initial" else restore_weights(pathlib.Path(judge.source))
            weights = jax.tree.map(jnp.copy, (source.params, source.rest))
            aux[slot] = {**aux[slot], "judge": jax.device_put(weights, shardings.aux[slot]["judge"])}
    return dataclasses.replace(state, aux=aux)


def restore_encoders(
    workdir: pathlib.Path, step: str | None = None, assignments: Mapping[str, str] = {}
) -> tuple[Experiment, int, Encoders]:
    """What a checkpoint of a run can encode and write; its config with `assignments`, and the step that it is of.

    Raises:
      ConfigError: a wrong step or assignment. CheckpointError: no readable checkpoint.
    """
    saved = restore_weights(workdir, step, assignments)
    encoders = make_encoders(saved.experiment, saved.model, saved.tokenizer, saved.mesh, (saved.params, saved.rest))
    return saved.experiment, saved.step, encoders


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """The evaluation weights of a checkpoint, with what they cannot be used without.

    Attributes:
      frame: see `Run.frame`.
      params, rest: path -> array, on `mesh`.
    """

    experiment: Experiment
    step: int
    frame: dict[str, Any]
    tokenizer: Tokenizer
    model: Functional
    mesh: Mesh
    params: dict[str, jax.Array]
    rest: dict[str, jax.Array]

    def put_into(self, state: TrainState, model: Functional, shardings: TrainState) -> TrainState:
        """A fresh state of another run that starts with these weights.

        Raises ConfigError where the two models are not of one shape.
        """
        for mine, theirs in ((model.params, self.model.params), (model.rest, self.model.rest)):
            for path in sorted({*mine, *theirs}):
                here, there = (tuple(m[path].shape) if path in m else "not there" for m in (mine, theirs))
                check(here == there, "init_from", f"{path} is {here} in this run's model and {there} in that of the weights; "
                      "model = presets.saved(workdir), with its image_size and text_length, is the same")  # fmt: skip
        # Copies: the run's buffers are donated to its steps.
        params, rest = jax.tree.map(jnp.copy, jax.device_put((self.params, self.rest), (shardings.params, shardings.rest)))
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(state, params=params, rest=rest, ema=ema)


def restore_weights(workdir: pathlib.Path, step: str | None = None, assignments: Mapping[str, str] = {}) -> SavedWeights:
    """The weights of a checkpoint, of a run or of `jaxvl.convert`; its config with `assignments`.

    Raises:
      ConfigError: a wrong step or assignment. CheckpointError: no readable checkpoint.
    """
    check(step is None or step.isdigit(), "--step", f"{step!r} must be a number")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    found, frame = checkpoints.frame(None if step is None else int(step))
    experiment = resolve(Experiment, override(ConfigDict(frame["config"]), assignments))
    mesh = make_mesh(experiment.mesh)
    tokenizer = Tokenizer.from_json(frame["tokenizer"])
    model = build_model(experiment, tokenizer)
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(experiment, model, mesh, make_judges(experiment, model, tokenizer))
        if frame.get("weights_only"):
            parts = [{"params": s.params, "rest": s.rest} for s in (shapes, shardings)]
            state = checkpoints.restore(abstract_state(*parts), found)[1]
            params, rest = state["params"], state["rest"]
        else:
            _, state, _ = checkpoints.restore(abstract_state(shapes, shardings), found)
            params, rest = state.eval_params, state.rest
    return SavedWeights(experiment, found, frame, tokenizer, model, mesh, params, rest)


def initial_weights(experiment: Experiment) -> SavedWeights:
    """Those of `init_from`. Raises ConfigError where it has none, or its pictures are scaled to other values than this run's."""
    try:
        saved = restore_weights(pathlib.Path(experiment.init_from))
    except CheckpointError as error:
        raise ConfigError("init_from", f"{experiment.init_from!r}: {error}") from None
    for field in ("mean", "std"):
        theirs, mine = (getattr(e.preprocess, field) for e in (saved.experiment, experiment))
        check(theirs == mine, f"preprocess.{field}", f"{mine!r} is not what the weights of init_from were trained with; must be {theirs!r}")
    return saved


def compile_all(experiment, tasks, model, abstract, shardings, mesh, writer, judges) -> dict[str, Step]:
    """One compiled step per task, ahead of the first step, with what each costs in the log."""
    steps = {}
    for name in tasks:
        began = time.perf_counter()
        steps[name], cost = compile_task(experiment, tasks, name, model, abstract, shardings, mesh, judges)
        seconds = time.perf_counter() - began
        writer.record(0, "event", f"compile/{name}", {
            "compile_seconds": seconds, "gflop": cost.flops / 1e9, "state_mib": cost.state / 2**20,
            "temporary_mib": cost.temporary / 2**20, **cost.collectives,
        })  # fmt: skip
        writer.say(f"task {name}: compiled in {seconds:.1f} s; {cost.flops / 1e9:,.1f} GFLOP a step; per device "
                   f"{cost.state / 2**20:,.0f} MiB state and batch, {cost.temporary / 2**20:,.0f} MiB temporary")  # fmt: skip
    return steps


def compile_task(experiment, tasks, name, model, abstract, shardings, mesh, judges) -> tuple[Step, Cost]:
    """The compiled step of one task, and its cost; `mesh` may be of devices that are not here.

    Raises:
      ConfigError: an objective reads what the model or the data does not give.
    """
    task = tasks[name]
    batch = {k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=batch_sharding(mesh)) for k, s in task.config.data.shapes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))  # an array could not be made on devices that are not here
    inputs = jax.eval_shape(task.prepare, batch, key)
    inputs = jax.eval_shape(functools.partial(roll_out, task, model, judges), abstract, inputs, key)
    outputs, _ = jax.eval_shape(functools.partial(model.apply, train=True), model.params, model.rest, inputs, key=key)
    task.check_outputs(outputs, batch)
    tx, trained = optimiser(experiment.optim, model.axes, model.locked)
    rate = learning_rate(experiment.optim, experiment.steps)
    step = make_step(task, model, tx, trained, rate, experiment.optim, experiment.guard, list(tasks).index(name), judges)
    return compile_step(step, abstract, batch, shardings)


def refuse_other(ours: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raises ConfigError where a checkpoint's model, tokenizer or preprocessing is not that of this run, or where it is none of a run."""
    if saved.get("weights_only"):
        raise ConfigError("--workdir", "holds converted weights, not a run; choose another, and config.init_from=FOLDER to start from them")
    if saved["config"]["model"] != json.loads(json.dumps(ours["config"]["model"])):
        old, new = saved["config"]["model"], ours["config"]["model"]
        differing = [k for k in sorted({*old, *new}) if json.dumps(old.get(k)) != json.dumps(new.get(k))]
        raise ConfigError(f"model.{differing[0] if differing else 'name'}", "differs from the checkpoint in the workdir "
                          f"({old.get(differing[0])!r} there, {new.get(differing[0])!r} here); choose another --workdir, or the old config")  # fmt: skip
    for part, parsed in (("tokenizer", str), ("preprocess", Preprocess.from_json)):  # parsed: older ones have fewer fields
        if parsed(saved[part]) != parsed(ours[part]):
            raise ConfigError(part, "differs from that of the checkpoint in the workdir; choose another --workdir, or the old config")


def describe_machine() -> dict[str, Any]:
    """Processor, devices, versions, command line: what the report says of where a figure comes from."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu
    devices = jax.devices()
    return {
        "cpu": cpu, "cores": os.cpu_count(), "devices": f"{len(devices)} x {devices[0].device_kind}", "processes": jax.process_count(),
        "python": platform.python_version(), "jax": jax.__version__, "system": platform.platform(), "command": " ".join(sys.orig_argv),
    }  # fmt: skip


def write_workdir(experiment: Experiment, workdir: pathlib.Path) -> None:
    """`config.json` (resolved) and `machine.json`."""
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(to_dict(experiment), indent=2))
        (workdir / "machine.json").write_text(json.dumps(describe_machine(), indent=2))
        logging.info("config and machine written to %s", workdir)
