"""Train a model: `python -m jaxvl.train --config=configs/align_emoji.py --config.optim.lr=1e-3 --workdir=runs/emoji`.

Options:
  --config=FILE[:ARG]     the config file and its argument string; `--config.KEY=VALUE` overrides one of its values
  --workdir=FOLDER        checkpoints, metrics and the report; a run found there is resumed
  --coordinator=HOST:PORT --processes=N --process=I    multi-host runs that the cluster does not announce by itself

Exit status: 0 done (or stopped by SIGTERM with everything saved), 1 training diverged or was lost, 2 wrong config.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import jax
from absl import logging
from rich.console import Console
from rich.markup import escape

from jaxvl import paths
from jaxvl.config import ConfigError, to_path
from jaxvl.data.records import DataError
from jaxvl.evals.report import save_gallery, summary_table, write_report
from jaxvl.sharding import hosts, make_mesh
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.describe import write_workdir
from jaxvl.training.experiment import Experiment, parse_command
from jaxvl.training.guard import TrainingDiverged, check_metrics
from jaxvl.training.meter import ALL, Meter
from jaxvl.training.run import Run
from jaxvl.training.setup import setup
from jaxvl.training.state import TrainState
from jaxvl.training.writer import Writer


def train(experiment: Experiment, workdir: paths.Path, console: Console | None = None) -> dict[str, float]:
    """Runs or resumes a training run; returns the last evaluation figures, `EVALUATOR/METRIC` -> value.

    Raises:
      ConfigError: before anything is compiled.
      TrainingDiverged: too many skipped steps in a row; the last good state is saved.
      CheckpointError: the last checkpoint could not be written.
    """
    paths.make_folder(workdir)
    stop = hosts.StopSignal()
    mesh = make_mesh(experiment.mesh)
    writer = Writer(workdir, experiment.steps, tensorboard=experiment.log.tensorboard, tasks=len(experiment.tasks), console=console)
    with writer, stop, jax.set_mesh(mesh):
        run = setup(experiment, mesh, workdir, writer)
        write_workdir(experiment, workdir)
        try:
            loop(run, stop)
        finally:
            run.close()
        if experiment.log.report and jax.process_index() == 0:
            writer.flush()
            writer.say(f"report: {write_report(workdir)}")
    return run.latest


def loop(run: Run, stop: hosts.StopSignal) -> None:
    """The training loop. The order of its lines matters: what is saved at a step is what that step left behind."""
    state, meter = run.state, Meter(run.experiment.log.every, run.feeds)
    run.state = None  # the buffers are donated to the first step; nobody else may hold them
    for step in range(run.start, run.total):
        turn = run.schedule(step)  # which task, or tasks; a pure function of the step: every host agrees, a resume continues
        batches = tuple(next(run.feeds[task]) for task in turn.tasks)  # already on the mesh
        state, metrics = run.steps[turn](state, batches)  # one compiled step per signature, state donated
        done = step + 1
        for record in meter.tick(done, turn, metrics):  # figures of earlier steps, by now on the host
            run.writer.record(record.step, "train", record.task, record.scalars)
            guard(run, state, record)
        run.writer.advance(done)
        for name, result in evaluate(run, state, done):  # whichever evaluators are due
            run.writer.record(done, "eval", name, result)
            meter.pause()
        stopping = stop.reached(done)
        if stopping or run.checkpoints.due(done) or done == run.total:
            run.writer.flush(wait=False)  # a resume from this step finds the records of those before it
            run.checkpoints.save(done, state, run.frame(), run.latest)
        if stopping:
            run.writer.say(f"stopped by {stop.name} after step {done}; saved, and resumed by the same command")
            break
    for record in meter.flush():
        run.writer.record(record.step, "train", record.task, record.scalars)
        guard(run, state, record)
    for task, feed in run.feeds.items():
        if feed.skipped:
            run.writer.record(int(state.step), "event", f"skipped/{task}", feed.skipped)  # cause -> records
    run.checkpoints.finish()


def guard(run: Run, state: TrainState, record) -> None:
    """Ends a run that has diverged, its last good state saved first."""
    if record.task == ALL:
        return
    try:
        check_metrics(run.experiment.guard, record.step, record.task, record.scalars)
    except TrainingDiverged:
        run.checkpoints.save(int(state.step), state, run.frame(), run.latest)
        run.checkpoints.finish()
        raise


def evaluate(run: Run, state: TrainState, step: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Runs the evaluators that are due; their pictures are kept for the report. Yields (name, figures)."""
    encoders = run.encoders(state)
    for name, evaluator in run.due(step):
        began = time.perf_counter()
        result = evaluator.run(encoders)
        run.latest |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
        if jax.process_index() == 0 and result.gallery:
            run.writer.image(step, f"gallery/{name}", save_gallery(run.workdir, name, step, result.gallery))
        yield name, {**result.metrics, "seconds": time.perf_counter() - began}


def main(argv: list[str]) -> int:
    console = Console(stderr=True)
    logging.set_verbosity(logging.WARNING)
    try:
        command = parse_command(argv, {"workdir": None, **hosts.OPTIONS})
        for needed, given in (("--config", command.config), ("--workdir", command.options.get("workdir"))):
            if not given:
                raise ConfigError(needed, "is required; see python -m jaxvl.train --help")
        hosts.initialise(command.options)
        latest = train(command.experiment(), to_path(command.options["workdir"], "--workdir"), console)
    except ConfigError as error:
        console.print(f"[bold red]config error[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except (TrainingDiverged, CheckpointError, DataError, paths.PathError) as error:
        console.print(f"[bold red]{type(error).__name__}[/] {escape(str(error))}", soft_wrap=True)
        return 1
    if latest and jax.process_index() == 0:
        Console().print(summary_table(latest))
    return 0


if __name__ == "__main__":
    if "--help" in sys.argv or "-h" in sys.argv:
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
