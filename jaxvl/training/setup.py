"""Builds a run from its config: data, tokenizer, mesh, model, state, compiled steps, feeds, evaluators, checkpoints."""

from __future__ import annotations

import functools
import pathlib

import jax
from jax.sharding import Mesh

from jaxvl.config import check, to_dict
from jaxvl.data.feed import Feed
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.tasks import Task
from jaxvl.training.build import build_model, fresh_state
from jaxvl.training.checkpoint import Checkpoints, abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.training.describe import describe_program
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Experiment
from jaxvl.training.inputs import prepare_corpora, task_tokenizer
from jaxvl.training.judges import make_judges
from jaxvl.training.restore import initial_weights, seat_judges
from jaxvl.training.resume import refuse_other
from jaxvl.training.run import Run
from jaxvl.training.state import present_form, saved_form
from jaxvl.training.writer import Writer


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
    saved_abstract = saved_form(abstract, checkpoints.frame()[1]) if checkpoints.steps else abstract
    restored = checkpoints.restore(saved_abstract, refuse=functools.partial(refuse_other, frame))
    if restored is None:
        start, state, positions = 0, jax.jit(fresh, out_shardings=shardings)(), {}
        state = seat_judges(state if base is None else base.put_into(state, experiment, model, shardings), shardings, judges)
    else:
        start, state, saved = restored
        state = present_form(state)
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
