"""Evaluate a checkpoint: `python -m jaxvl.evaluate --workdir=runs/align_emoji`.

Runs the evaluators of the run's own config with the weights, tokenizer and preprocessing of its newest checkpoint.

Options:
  --workdir=FOLDER        of a training run
  --step=N                another of its checkpoints
  --out=FOLDER            where results go (default: WORKDIR/evaluate): results.json and the gallery
  --config.evals.NAME.KEY=VALUE   changes or adds evaluators: `--config.evals.german.name=zero_shot
                          --config.evals.german.corpus=emoji --config.evals.german.split=test_a --config.evals.german.locale=de`
  --only=NAME,NAME        only these evaluators

Exit status: 0 done, 1 no readable checkpoint or unreadable data, 2 wrong config.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
from absl import logging
from rich.console import Console
from rich.markup import escape

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.records import DataError
from jaxvl.evals.contract import check_evaluators
from jaxvl.evals.report import save_gallery, summary_table
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.experiment import Command, parse_command
from jaxvl.training.restore import restore_encoders


def evaluate(command: Command, console: Console) -> dict[str, float]:
    """Figures `EVALUATOR/METRIC` of a checkpoint; also written to `results.json`.

    Raises:
      ConfigError: an unknown evaluator or option. CheckpointError: no readable checkpoint.
    """
    workdir = pathlib.Path(command.options["workdir"])
    experiment, step, encoders = restore_encoders(workdir, command.options.get("step"), command.assignments)
    out = pathlib.Path(command.options.get("out", workdir / "evaluate"))
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    chosen = _chosen(command.options.get("only"), list(experiment.evals))
    check_evaluators({name: experiment.evals[name] for name in chosen}, encoders)
    for name in chosen:
        console.print(f"{name} …")
        result = experiment.evals[name].run(encoders)
        figures |= {f"{name}/{metric}": value for metric, value in result.metrics.items()}
        if result.gallery and jax.process_index() == 0:
            save_gallery(out, name, step, result.gallery)
    if jax.process_index() == 0:
        (out / "results.json").write_text(json.dumps({"step": step, **figures}, indent=1))
    return figures


def _chosen(text: str | None, known: list[str]) -> list[str]:
    chosen = known if text is None else text.split(",")
    for name in chosen:
        check(name in known, "--only", f"{name!r} is not an evaluator{nearest(name, known)} (there are: {', '.join(known)})")
    return chosen


def main(argv: list[str]) -> int:
    console = Console(stderr=True)
    logging.set_verbosity(logging.WARNING)
    try:
        command = parse_command(argv, {"workdir": None, "step": None, "out": None, "only": None})
        check("workdir" in command.options, "--workdir", "is required; see python -m jaxvl.evaluate --help")
        figures = evaluate(command, console)
    except ConfigError as error:
        console.print(f"[bold red]config error[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except (CheckpointError, DataError) as error:
        console.print(f"[bold red]{type(error).__name__}[/] {escape(str(error))}", soft_wrap=True)
        return 1
    Console().print(summary_table(figures))
    return 0


if __name__ == "__main__":
    if "--help" in sys.argv or "-h" in sys.argv:
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
