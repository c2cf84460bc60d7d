"""Train a model: `python -m jaxvl.train --config=configs/align_emoji.py --config.optim.lr=1e-3
--workdir=runs/emoji`.

Options:
  --config=FILE[:ARG]     the config file and its argument string; `--config.KEY=VALUE` overrides one of its values
  --workdir=FOLDER        checkpoints, metrics and the report; a run found there is resumed. Of a
                          config with stages each has a folder in it (training/stages.py)
  --profile=FIRST:LAST    a trace of these steps into WORKDIR/profile, for xprof: --profile=10:12
  --coordinator=HOST:PORT --processes=N --process=I    multi-host runs that the cluster does not announce by itself
  --coordinator=auto      multi-host runs whose hosts JAX finds by itself (a TPU pod, say)

Exit status: 0 done, 1 training diverged or was lost, 2 wrong config, 3 trained and saved, but an
evaluator failed (the same command tries it again), 75 stopped by SIGTERM or Ctrl-C with everything
saved (the same command goes on). launch/submit.py starts a run and restarts it by these.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

import jax
from rich.console import Console

from jaxvl import paths
from jaxvl.chips import peak_flops
from jaxvl.command import STOPPED, run_command, start, tell
from jaxvl.config import check, to_dict, to_path
from jaxvl.data.records import DataError
from jaxvl.evals.report import summary_table, write_report
from jaxvl.sharding import hosts, make_mesh
from jaxvl.training.agreement import Agreement
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.describe import (
    describe_fitted,
    describe_goodput,
    describe_input,
    describe_stragglers,
    write_workdir,
)
from jaxvl.training.deterministic import make_deterministic
from jaxvl.training.elastic import fitted
from jaxvl.training.experiment import Experiment, parse_command
from jaxvl.training.goodput import Clock
from jaxvl.training.guard import TrainingDiverged, diverged
from jaxvl.training.meter import Meter, Record, Speed
from jaxvl.training.profile import Profile
from jaxvl.training.programs import keep_programs
from jaxvl.training.rollback import go_back, may_go_back
from jaxvl.training.run import EvaluationError, Run
from jaxvl.training.setup import finished_figures, setup
from jaxvl.training.spikes import report_spike
from jaxvl.training.stages import stages_of, train_stages
from jaxvl.training.state import TrainState
from jaxvl.training.writer import Writer


def train(
    experiment: Experiment,
    workdir: paths.Path,
    console: Console | None = None,
    profile: str | None = None,
    stop: hosts.StopSignal | None = None,
) -> dict[str, float]:
    """Runs or resumes a training run; returns the last evaluation figures, `EVALUATOR/METRIC` ->
    value.

    Args:
      profile: steps to trace, `FIRST:LAST`; see `Profile`.
      stop: has a name afterwards, where a signal has ended the run early; None: one of its own.

    Raises:
      ConfigError: before anything is compiled.
      TrainingDiverged: too many skipped steps in a row; the last good state is saved.
      CheckpointError: the last checkpoint could not be written.
      DataError: the data cannot be read, by this process or another; the last whole step is saved.
      EvaluationError: the run is done and saved, but an evaluator failed.
    """
    clock = Clock()
    if experiment.deterministic:
        make_deterministic()
    paths.make_folder(workdir)
    stop = stop or hosts.StopSignal()
    planned = experiment
    experiment = fitted(planned, jax.device_count())
    mesh = make_mesh(experiment.mesh)
    log = experiment.log
    writer = Writer(
        workdir,
        experiment.steps,
        tensorboard=log.tensorboard,
        tasks=len(experiment.tasks),
        wandb=log.wandb,
        config=to_dict(experiment),
        console=console,
    )
    tracer = Profile(profile, writer.folder, experiment.steps, writer.say)
    with writer, stop, jax.set_mesh(mesh):
        if experiment is not planned:
            writer.say(describe_fitted(experiment, mesh.size))
        with stop.at_once("before the first step"):
            run = setup(experiment, mesh, workdir, writer)
        write_workdir(experiment, workdir)
        try:
            loop(run, stop, clock, tracer)
        finally:
            tracer.close()
            run.close()
        if log.report and jax.process_index() == 0:
            writer.flush()
            writer.say(f"report: {write_report(workdir)}")
    if run.failed:
        raise EvaluationError(run.failed, run.figures.latest)
    return run.figures.latest


def loop(run: Run, stop: hosts.StopSignal, clock: Clock, profile: Profile) -> None:
    """The training loop. The order of its lines matters: what is saved at a step is what that step
    left behind."""
    state = run.take_state()
    meter = Meter(run.experiment.log.every, run.feeds, clock, speed(run))
    agreement = Agreement(stop, run.feeds)
    profile.begin(run.start)
    for task, feed in run.feeds.items():
        if feed.left_out:
            run.writer.record(
                run.start, "event", f"left_out/{task}", feed.left_out
            )  # cause -> files or members, of all hosts once
    evaluate(
        run, state, run.start, meter, stop
    )  # what was due at the step of the checkpoint, if the run ended before it was done
    if run.start == run.total:
        work(run, state, run.start, meter, stop)
    step = run.start
    if step < run.total and may_go_back(run):  # it was stopped before it could
        state, step = go_back(run, state)
    elif step == 0 and run.experiment.guard.rollback:
        run.save(0, state)
    while step < run.total:
        done = step + 1
        turn = run.schedule(
            step
        )  # which task, or tasks; a pure function of the step: every host agrees, a resume continues
        with profile.step(done):
            batches = tuple(
                run.feeds[task].take(call=agreement.calling) for task in turn.tasks
            )  # already on the mesh
            state, metrics = run.steps[turn](
                state, batches
            )  # one compiled step per signature, state donated
        profile.stop(done, metrics)
        run.watch.started(done, turn, metrics, run.feeds)
        record(run, meter.tick(done, turn, metrics))  # figures of earlier steps, by now on the host
        run.writer.advance(done)
        saving = run.save_due(done)
        verdict = agreement.after(metrics, wait=saving or bool(run.due(done)))
        describe_stragglers(verdict.slow, done, run.writer)
        if verdict.error is not None:
            end(run, state, done, verdict.error)
        if guard(run, state, wait=saving or verdict.stop):
            record(run, meter.flush())
            with meter.away("checkpoint"):
                state, step = go_back(run, state)
            if verdict.stop:
                run.writer.say(f"stopped by {stop.name} at step {step}, to which the run went back")
                stop.obeyed = True
                break
            continue
        step = done
        if verdict.stop or saving:
            with meter.away("checkpoint"):
                run.writer.flush(
                    wait=False
                )  # a resume from this step finds the records of those before it
                run.save(done, state)  # before the evaluators: what fails there loses nothing
        if verdict.stop:
            run.writer.say(
                f"stopped by {stop.name} after step {done}; saved, and resumed by the same command"
            )
            stop.obeyed = True
            break
        evaluate(run, state, done, meter, stop)
        work(run, state, done, meter, stop)
    record(run, meter.flush())
    for task, skipped in run.skipped_records().items():
        if skipped:
            run.writer.record(
                int(state.step), "event", f"skipped/{task}", skipped
            )  # cause -> records
    with meter.away("checkpoint"):
        run.checkpoints.finish()
    describe_input(meter, int(state.step), run.writer)
    describe_goodput(meter, int(state.step), run.writer)


def record(run: Run, records: Iterable[Record]) -> None:
    """Writes the figures of steps."""
    for one in records:
        run.writer.record(one.step, "train", one.task, one.scalars)


def speed(run: Run) -> Speed:
    """What the steps cost, and what the devices of the mesh can do."""
    kind = run.mesh.devices.flat[0].device_kind
    peak = run.experiment.log.peak_flops or peak_flops(kind)
    return Speed(run.costs, run.mesh.size, peak)


def end(run: Run, state: TrainState, done: int, error: Exception) -> NoReturn:
    """Ends a run whose data has failed, in all processes at the same step: saves the state after
    the last step that was whole, and raises."""
    whole = int(state.step)
    run.watch.read(run.experiment.guard.stop_after, wait=True)
    for step in range(
        whole, done
    ):  # steps whose rows some process did not have; they have changed nothing
        for task in run.schedule(step).tasks:
            run.feeds[task].take_back()
    if whole > run.start:
        run.save(whole, state)
        run.writer.say(f"ended after step {whole}, which is saved: {error}")
    try:
        run.checkpoints.finish()
    except CheckpointError as lost:
        raise CheckpointError(f"{error}; besides, {lost}") from error
    raise error


def guard(run: Run, state: TrainState, wait: bool) -> bool:
    """Tells of the steps that were not applied, of those before the last one (with `wait`, of that
    too). Returns whether the run has to go back; one that has diverged and may not ends, its last
    good state saved first."""
    found = run.watch.read(run.experiment.guard.stop_after, wait)
    for judged in found:
        report_spike(run, judged)
    row = run.watch.full_row(run.experiment.guard.stop_after)
    if not found or not row:
        return False
    if may_go_back(run):
        return True
    run.watch.read(run.experiment.guard.stop_after, wait=True)  # what is saved is later by a step
    run.save(int(state.step), state)
    run.checkpoints.finish()
    raise diverged(row, found[-1].figures)


def evaluate(run: Run, state: TrainState, step: int, meter: Meter, stop: hosts.StopSignal) -> None:
    """Runs the evaluators that are due with the weights of `step`; a fault in one is recorded and
    shown, and the run goes on. SIGTERM ends it at once where the weights are saved."""
    due = run.due(step)
    if not due:
        return
    with meter.away("checkpoint"):
        run.checkpoints.settle()  # a process that dies while it evaluates has lost no step
    encoders = run.encoders(state)
    for name, evaluator in due.items():
        began = time.perf_counter()
        try:
            with meter.away("evaluation"), interruptible(run, step, stop):
                result = evaluator.run(encoders)
        except (
            Exception
        ) as error:  # the weights are saved; what an evaluator lacks must not end their training
            hosts.meet(
                f"evaluator {name} at {step}"
            )  # one that fails in some processes only would leave the others waiting
            run.note_failure(step, name, error)
            continue
        run.note_figures(step, name, result.metrics, seconds=time.perf_counter() - began)
        run.keep_gallery(step, name, result.gallery)


def interruptible(
    run: Run, step: int, stop: hosts.StopSignal
) -> contextlib.AbstractContextManager[None]:
    """In which SIGTERM ends this process at once, if the state of `step` is saved: what is done
    with its weights is done again by the run that goes on."""
    if step not in run.checkpoints.steps:
        return contextlib.nullcontext()
    return stop.at_once(f"while the weights of step {step} were evaluated")


def work(run: Run, state: TrainState, step: int, meter: Meter, stop: hosts.StopSignal) -> None:
    """Runs the jobs that are due with the weights of `step`, and lets the tasks that read their
    tables go on with the new ones. A fault in one ends the run, which is saved."""
    if not run.jobs.due(step):
        return
    with meter.away("checkpoint"):
        run.checkpoints.settle()
    with meter.away("evaluation"), interruptible(run, step, stop):
        run.jobs.run(step, run.encoders(state), min(run.checkpoints.steps, default=step))
        if step < run.total:
            for task, source in run.jobs.renewed(step).items():
                run.feeds[task].reopen(source)


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (TrainingDiverged, CheckpointError, DataError, paths.PathError))


def _run(argv: Sequence[str], console: Console) -> int:
    command = parse_command(argv, {"workdir": None, "profile": None, **hosts.OPTIONS})
    for needed, given in (
        ("--config", command.config),
        ("--workdir", command.options.get("workdir")),
    ):
        check(bool(given), needed, "is required; see python -m jaxvl.train --help")
    hosts.initialise(command.options)
    keep_programs()
    workdir = to_path(command.options["workdir"], "--workdir")
    stages = stages_of(command, workdir)
    if any(stage.experiment.deterministic for stage in stages):
        make_deterministic()  # before anything asks for a device
    shown = finished_figures(stages[-1].experiment, stages[-1].workdir)
    show(shown)  # at once; what follows makes sure that the last checkpoint can be read
    status = 0
    stop = hosts.StopSignal()
    try:
        profile = command.options.get("profile")
        latest = train_stages(stages, train, workdir, console, profile, stop)
    except EvaluationError as error:
        tell(console, "evaluators failed", error)
        latest = error.latest
        status = 3
    if latest != shown:
        show(latest)
    return STOPPED if stop.obeyed else status


def show(figures: dict[str, float]) -> None:
    """Prints evaluation figures as a table, if there are any."""
    if figures and jax.process_index() == 0:
        Console().print(summary_table(figures))


if __name__ == "__main__":
    start(main, __doc__)
