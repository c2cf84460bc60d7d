"""Builds a run from its config: data, tokenizer, mesh, model, state, compiled steps, feeds, evaluators, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvl.adapters.upcycle import moe_configs, upcycle
from jaxvl.config import ConfigError, check, nearest, override, resolve, to_dict
from jaxvl.data.feed import Feed
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer, make_tokenizer
from jaxvl.evals.encoders import Encoders
from jaxvl.models.functional import Functional, functional
from jaxvl.sharding.mesh import make_mesh
from jaxvl.tasks import Task
from jaxvl.training.checkpoint import CheckpointError, Checkpoints, abstract_state
from jaxvl.training.compile import Program, compile_turns
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Experiment
from jaxvl.training.judges import make_judges
from jaxvl.training.optim import optimiser
from jaxvl.training.rollout import Judge
from jaxvl.training.schedule import Turn, Turns
from jaxvl.training.state import TrainState, init_state, state_shardings
from jaxvl.training.step import Metrics
from jaxvl.training.writer import Writer


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
        state = seat_judges(state if base is None else base.put_into(state, experiment, model, shardings), shardings, judges)
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
    epochs = {t: len(task.config.data.open(corpora[task.config.data.corpus])) / task.config.data.batch for t, task in tasks.items()}
    schedule = experiment.schedule.build(list(tasks), experiment.steps, epochs)
    programs = compile_turns(experiment, tasks, schedule.turns, model, abstract, shardings, mesh, judges)
    for program in programs:
        describe_program(program, model, writer)
    steps = {turn: program.bind(turn, list(tasks), mesh) for program in programs for turn in program.turns}
    return Run(experiment, workdir, mesh, model, tokenizer, preprocess, state, start, experiment.steps, schedule, steps, feeds, checkpoints,
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
        try:
            found = task.data.classes(corpora[task.data.corpus])
        except ConfigError as error:
            raise error.under(f"tasks.{name}.data") from None
        for key, use in task.objectives.items():
            if found and (head := getattr(use.objective, "head", None)) is not None:
                heads, k = getattr(experiment.model, "classes", {}), len(found[1])
                problem = (
                    f"{heads.get(head)!r} classes; must be {k}, for {task.data.attribute!r} of the corpus (tasks.{name}.objectives.{key})"
                )
                check(heads.get(head) == k, f"model.classes.{head}", problem)
    return corpora


def task_tokenizer(experiment: Experiment, corpora: dict[Any, Any]) -> Tokenizer:
    """The tokenizer; a vocabulary that is trained is trained on the texts of all tasks' splits, in the languages that they read."""
    read = dict.fromkeys((t.data.corpus, t.data.split, t.data.locales) for t in experiment.tasks.values() if t.data.locales != ())
    texts = itertools.chain.from_iterable(corpora[corpus].texts(split, locales) for corpus, split, locales in read)
    origin = " ".join(f"{corpora[corpus].folder.name}/{split}/{locales}" for corpus, split, locales in read)
    return make_tokenizer(experiment.tokenizer, texts, origin)


def build_model(experiment: Experiment, tokenizer: Tokenizer | Vocabulary) -> Functional:
    """Raises ConfigError where model, tokenizer and inputs do not fit, be it those of one task only, or the model has not a task's options."""
    inputs = experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    try:
        model = functional(experiment.model, inputs, jnp.dtype(experiment.dtype))
    except ConfigError as error:
        raise error.under("model") from None
    start = getattr(experiment.model, "start_id", None)
    if isinstance(tokenizer, Tokenizer) and start is not None:
        check(start == tokenizer.cls_id, "model.start_id", f"{start} is not what the tokenizer begins texts with ({tokenizer.cls_id})")
    for name, task in experiment.tasks.items():
        options = model.options(task.encode, f"tasks.{name}.encode")
        try:
            if hasattr(experiment.model, "check_task"):
                experiment.model.check_task(task.data, options)
        except ConfigError as error:
            raise error.under(f"tasks.{name}") from None
        try:
            experiment.model.check_inputs(dataclasses.replace(inputs, image_size=task.data.image_size))
        except ConfigError as error:
            raise ConfigError(f"tasks.{name}.data.image_size", f"{task.data.image_size} does not fit the model: {error}") from None
    return model


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

    def put_into(self, state: TrainState, experiment: Experiment, model: Functional, shardings: TrainState) -> TrainState:
        """A fresh state of another run that starts with these weights; where only that has experts, each is the MLP of these weights.

        Raises ConfigError where the two models are not of one shape.
        """
        params = self.params
        if any("/moe/router/" in p for p in model.params) and not any("/moe/" in p for p in params):
            params = self._upcycled(state, experiment, shardings)
        for mine, theirs in ((model.params, params), (model.rest, self.rest)):
            for path in sorted({*mine, *theirs}):
                here, there = (tuple(m[path].shape) if path in m else "not there" for m in (mine, theirs))
                check(here == there, "init_from", f"{path} is {here} in this run's model and {there} in that of the weights; "
                      "model = presets.saved(workdir), with its image_size and text_length, is the same")  # fmt: skip
        # Copies: the run's buffers are donated to its steps.
        params, rest = jax.tree.map(jnp.copy, jax.device_put((params, self.rest), (shardings.params, shardings.rest)))
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(state, params=params, rest=rest, ema=ema)

    def _upcycled(self, state: TrainState, experiment: Experiment, shardings: TrainState) -> dict[str, jax.Array]:
        """These weights for a model with experts; its routers are fresh."""
        found = moe_configs(experiment.model)
        check(len(found) == 1, "init_from", f"the model has {len(found)} kinds of experts; must be one to start from dense weights")
        convert = jax.jit(lambda dense, fresh: upcycle([dense], fresh, found[0]), out_shardings=shardings.params)
        try:
            return convert(self.params, state.params)
        except ValueError as error:
            raise ConfigError("init_from", str(error)) from None


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


def describe_program(program: Program, model: Functional, writer: Writer) -> None:
    """Says and records what was compiled: for which tasks, how much of the model it trains, what it costs."""
    names, cost = " | ".join(map(str, program.turns)), program.cost
    trains, parameters = (sum(math.prod(model.params[p].shape) for p in paths) for paths in (program.learns, model.params))
    writer.record(0, "event", f"compile/{program.turns[0]}", {
        "tasks": names, "trains": trains, "compile_seconds": program.seconds, "gflop": cost.flops / 1e9, "state_mib": cost.state / 2**20,
        "temporary_mib": cost.temporary / 2**20, **cost.collectives,
    })  # fmt: skip
    writer.say(f"step of {names}: compiled in {program.seconds:.1f} s; trains {trains:,} of {parameters:,} parameters; "
               f"{cost.flops / 1e9:,.1f} GFLOP; per device {cost.state / 2**20:,.0f} MiB state and batch, "
               f"{cost.temporary / 2**20:,.0f} MiB temporary")  # fmt: skip


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
