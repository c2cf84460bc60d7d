"""Builds a run from its config: data, tokenizer, mesh, model, state, compiled steps, feeds,
evaluators, checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from jax.sharding import Mesh
from rich.markup import escape

from jaxvl import paths
from jaxvl.config import ConfigError, check, plugin_changes
from jaxvl.data.draws import derive
from jaxvl.data.feed import Feed
from jaxvl.data.sources.base import Source
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.contract import check_evaluators
from jaxvl.training.build import build_model, draw_state, fresh_state, make_tasks
from jaxvl.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    OtherState,
    Restored,
    abstract_state,
)
from jaxvl.training.compile import compile_turns
from jaxvl.training.compiler import compiler_options, describe_options, own_flags
from jaxvl.training.describe import describe_adapters, describe_program
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Experiment
from jaxvl.training.figures import Figures
from jaxvl.training.guard import Watch
from jaxvl.training.inputs import open_sources, task_tokenizer
from jaxvl.training.jobs import RunJobs
from jaxvl.training.programs import describe_programs
from jaxvl.training.programs import figures as programs_kept
from jaxvl.training.restore import seat_teachers
from jaxvl.training.resume import check_data, check_resumable, explain
from jaxvl.training.rollback import start_of
from jaxvl.training.run import Run
from jaxvl.training.start import InitialWeights, initial_weights
from jaxvl.training.state import TrainState, present_form, saved_form
from jaxvl.training.tables import RunTables
from jaxvl.training.teacher_models import make_teachers
from jaxvl.training.writer import Writer


def setup(experiment: Experiment, mesh: Mesh, workdir: paths.Path, writer: Writer) -> Run:
    """Builds the run under `jax.set_mesh(mesh)`, and restores the newest checkpoint of `workdir`
    where there is one.

    Raises:
      ConfigError: sizes that do not fit; a checkpoint in `workdir` that the run cannot go on from.
    """
    check(bool(experiment.tasks), "tasks", "must name at least one task")
    experiment.check_mesh(mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", experiment.checkpoint)
    if checkpoints.steps:
        check_resumable(experiment, None, checkpoints.frame()[1])  # before anything costs time

    tables = RunTables(experiment, workdir)
    sources = open_sources(experiment, writer.say, tables)
    jobs = RunJobs(experiment, tables, sources, writer)
    base = None
    if experiment.start and not checkpoints.steps:
        base = initial_weights(experiment)
    tokenizer = _tokenizer(experiment, sources, checkpoints, base)
    model = build_model(experiment, tokenizer)
    encoders = make_encoders(experiment, model, tokenizer, mesh)
    unweighted = encoders.with_weights((model.params, model.model_state))
    check_evaluators(experiment.evals, unweighted, experiment.checkpoint.best_metric)
    jobs.check(unweighted, checkpoints.steps[-1] if checkpoints.steps else 0)
    describe_adapters(experiment, model, writer)
    teachers = make_teachers(experiment, model, tokenizer)
    fresh, shapes, shardings = fresh_state(experiment, model, mesh, teachers)
    abstract = abstract_state(shapes, shardings)

    restored = _restore(experiment, checkpoints, abstract, tokenizer)
    if restored is None:
        start = 0
        state = draw_state(fresh, experiment.seed, shardings, mesh)
        if base is not None:
            state = base.put_into(state, experiment, model, shardings)
        state = seat_teachers(state, shardings, teachers)
    else:
        start = restored.step
        state = present_form(restored.state)
        _announce(experiment, restored, workdir, writer)

    tasks = make_tasks(experiment)
    if start < experiment.steps:  # the tables that the tasks read from this step on
        weights = state.weights(experiment.optim.evaluated)
        jobs.run(start, encoders.with_weights(weights), oldest=start)
    feeds = _feeds(experiment, jobs.sources(start), tokenizer, mesh, restored)
    epochs = {name: feed.records / feed.rows for name, feed in feeds.items()}
    schedule = experiment.schedule.build(list(tasks), experiment.steps, epochs)
    steps = {}
    costs = {}
    if start < experiment.steps:  # else there is nothing left to train
        programs = compile_turns(
            experiment, tasks, schedule.turns, model, abstract, shardings, mesh, teachers
        )
        options = compiler_options(experiment.compiler, mesh)
        if options or own_flags():
            writer.say(escape(describe_options(experiment.compiler, options)))
        for program in programs:
            describe_program(program, model, writer)
            steps |= {turn: program.bind(turn, list(tasks), mesh) for turn in program.turns}
            costs |= dict.fromkeys(program.turns, program.cost)
        writer.record(start, "event", "programs", programs_kept())
        writer.say(escape(describe_programs()))

    figures = Figures(workdir, until=start)
    for step in figures.steps:
        checkpoints.score(step, figures.at(step))
    return Run(
        experiment=experiment,
        workdir=workdir,
        mesh=mesh,
        model=model,
        tokenizer=tokenizer,
        preprocess=experiment.preprocess,
        state=state,
        start=start,
        total=experiment.steps,
        schedule=schedule,
        steps=steps,
        feeds=feeds,
        checkpoints=checkpoints,
        encode=encoders,
        jobs=jobs,
        writer=writer,
        figures=figures,
        abstract=abstract,
        watch=Watch(
            None if restored is None else restored.frame.get("guard"),
            {name: feed.position for name, feed in feeds.items()},
        ),
        costs=costs,
    )


def finished_figures(experiment: Experiment, workdir: paths.Path) -> dict[str, float]:
    """The last figures of a run that is finished, `EVALUATOR/METRIC` -> value; empty where it is
    not.

    Raises ConfigError where the checkpoint is of another run, as `setup` does.
    """
    folder = workdir / "checkpoints"
    if not paths.is_folder(folder):
        return {}
    try:
        _, frame = Checkpoints(folder, read_only=True).frame()
    except CheckpointError:
        return {}
    check_resumable(experiment, None, frame)
    if frame["step"] < experiment.steps:
        return {}
    return Figures(workdir, until=frame["step"]).latest


def _tokenizer(
    experiment: Experiment,
    sources: Mapping[str, Source],
    checkpoints: Checkpoints,
    base: InitialWeights | None,
) -> Tokenizer:
    """The run's tokenizer: that of the words which it starts with, if there are any, else one of
    its own."""
    if base is not None and base.tokenizer is not None:
        return base.tokenizer
    if base is not None or not experiment.start:
        return task_tokenizer(experiment, sources)
    # A run that is resumed does not need the weights that it began with.
    return Tokenizer.from_json(checkpoints.frame()[1]["tokenizer"])


def _restore(
    experiment: Experiment, checkpoints: Checkpoints, abstract: TrainState, tokenizer: Tokenizer
) -> Restored | None:
    """The newest checkpoint that can be read. Raises ConfigError where the run cannot go on from
    it."""
    try:
        refuse = functools.partial(check_resumable, experiment, tokenizer.to_json())
        return checkpoints.restore(functools.partial(saved_form, abstract), refuse=refuse)
    except OtherState as error:
        raise explain(error, experiment, checkpoints.frame()[1]) from None


def _announce(
    experiment: Experiment, restored: Restored, workdir: paths.Path, writer: Writer
) -> None:
    """Says from where the run goes on, and which of its plugins have changed since."""
    if restored.step < experiment.steps:
        writer.say(f"resuming from step {restored.step} of {workdir}")
    else:
        writer.say(
            f"the run in {workdir} is finished; its checkpoint of step {restored.step} can be read"
        )
    for sentence in plugin_changes(restored.frame["config"].get("plugins", ()), experiment.plugins):
        writer.say(escape(sentence))


def _feeds(
    experiment: Experiment,
    sources: Mapping[str, Source],
    tokenizer: Tokenizer,
    mesh: Mesh,
    restored: Restored | None,
) -> dict[str, Feed]:
    """Task -> its feed, which begins where the checkpoint's run had got to.

    Raises ConfigError where the checkpoint's run read other records.
    """
    frame = None if restored is None else restored.frame
    feeds = {}
    for name, task in experiment.tasks.items():
        try:
            feeds[name] = Feed(
                task.data,
                sources[name],
                tokenizer,
                seed=derive(
                    experiment.seed, "data", name
                ),  # tasks on one source draw different records
                mesh=mesh,
                start=start_of(frame, name),
                preprocess=experiment.preprocess,
            )
        except ConfigError as error:
            raise error.under(f"tasks.{name}.data") from None
    if restored is not None:
        check_data(
            experiment, {name: feed.identity for name, feed in feeds.items()}, restored.frame
        )
    return feeds
