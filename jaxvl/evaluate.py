"""Evaluate a checkpoint: `python -m jaxvl.evaluate --workdir=runs/align_emoji`.

Runs the evaluators of the run's own config with the weights, tokenizer and preprocessing of its
newest checkpoint, on all devices there are. A model of pod size is evaluated as it was trained: by
the same command on every host, `--workdir` on storage that all of them see. The figures do not
depend on the number of hosts; the first one writes and prints them.

Options:
  --workdir=FOLDER        of a training run
  --step=N                another of its checkpoints
  --out=FOLDER            where results go (default: WORKDIR/evaluate): results.json and the gallery
  --config.evals.NAME.KEY=VALUE   changes or adds evaluators: `--config.evals.german.name=zero_shot
                                  --config.evals.german.language=de
                          --config.evals.german.source=emoji
                          --config.evals.german.source.split=test_a`
  --config.optim.evaluate=NAME    other weights than those that the run's own evaluation uses:
                          `parameters`, or one of its averages (`optim.ema`) by name
  --config.mesh.AXIS=N    other devices per axis than in training: `--config.mesh.data=-1
                          --config.mesh.fsdp=4`
  --only=NAME,NAME        only these evaluators
  --coordinator=HOST:PORT --processes=N --process=I    multi-host runs that the cluster does not
                                                       announce by itself
  --coordinator=auto      multi-host runs whose hosts JAX finds by itself (a TPU pod, say)

Exit status: 0 done, 1 no readable checkpoint or unreadable data, 2 wrong config.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
from absl import logging
from rich.console import Console

from jaxvl import paths
from jaxvl.command import run_command, start
from jaxvl.config import check, nearest, to_path
from jaxvl.data.records import DataError
from jaxvl.evals.contract import check_evaluators
from jaxvl.evals.report import save_gallery, summary_table
from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.experiment import Command, parse_command
from jaxvl.training.programs import keep_programs
from jaxvl.training.restore import restore_encoders


def evaluate(command: Command, console: Console) -> dict[str, float]:
    """Figures `EVALUATOR/METRIC` of a checkpoint; the first process also writes them to
    `results.json`.

    Every process must make the call; each gets all figures.

    Raises:
      ConfigError: an unknown evaluator or option. CheckpointError: no readable checkpoint.
    """
    first = jax.process_index() == 0
    workdir = to_path(command.options["workdir"], "--workdir")
    experiment, step, encoders = restore_encoders(
        workdir, command.options.get("step"), command.assignments
    )
    out = to_path(command.options.get("out", workdir / "evaluate"), "--out")
    if first:
        paths.make_folder(out)
    figures: dict[str, float] = {}
    chosen = _chosen(command.options.get("only"), list(experiment.evals))
    check_evaluators({name: experiment.evals[name] for name in chosen}, encoders)
    for name in chosen:
        if first:
            console.print(f"{name} …")
        result = experiment.evals[name].run(encoders)
        figures |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
        if first and result.gallery:
            save_gallery(out, name, step, result.gallery)
    if first:
        paths.write_text(out / "results.json", json.dumps({"step": step, **figures}, indent=1))
    return figures


def _chosen(text: str | None, known: list[str]) -> list[str]:
    chosen = known if text is None else text.split(",")
    for name in chosen:
        check(
            name in known,
            "--only",
            f"{name!r} is not an evaluator{nearest(name, known)} (there are: {', '.join(known)})",
        )
    return chosen


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (CheckpointError, DataError, paths.PathError), logging.ERROR)


def _run(argv: Sequence[str], console: Console) -> int:
    command = parse_command(
        argv, {"workdir": None, "step": None, "out": None, "only": None, **hosts.OPTIONS}
    )
    check(
        "workdir" in command.options,
        "--workdir",
        "is required; see python -m jaxvl.evaluate --help",
    )
    hosts.initialise(command.options)
    keep_programs()
    figures = evaluate(command, console)
    if jax.process_index() == 0:
        Console().print(summary_table(figures))
    return 0


if __name__ == "__main__":
    start(main, __doc__)
