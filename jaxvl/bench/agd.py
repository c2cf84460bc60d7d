"""The cost of switching compiled steps: two tasks in turn, against each of them alone.

    python -m jaxvl.bench.agd                                      # three small tasks of different shapes on one model
    python -m jaxvl.bench.agd --config=configs/FILE.py             # the tasks of a config, on random batches

Steps are started as in training, the state donated from one to the next; data does not count. The
cost of a switch is the time of 2 N alternating steps less those of N steps of either, by the number
of switches.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
from collections.abc import Callable

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import in_turn, publish
from jaxvl.bench.one_step import random_rows
from jaxvl.config import load_file, resolve
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.tasks import Task
from jaxvl.training.build import Vocabulary, build_model, draw_state, fresh_state
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.training.experiment import Experiment
from jaxvl.training.schedule import Turn

WORDS = 512


def small() -> dict[str, Json]:
    """Config of three tasks: batches of different pictures, texts and rows; the third with another
    objective too."""

    def task(batch: int, image_size: int, text_length: int, **objectives: float) -> dict[str, Json]:
        fields = dict(
            image=dict(name="picture", size=image_size),
            text=dict(name="caption", columns="name/en", length=text_length),
        )
        data = dict(source=dict(name="shapes", split="train_a"), batch=batch, fields=fields)
        return dict(data=data, objectives=objectives)

    side = dict(width=64, depth=2, heads=2)
    return dict(
        model=dict(
            name="dual_encoder",
            image=dict(name="vit", variant="Ti/16", **side),
            text=dict(name="text_transformer", variant="Ti", **side),
        ),
        preprocess=dict(image_size=64),
        tokenizer=dict(vocab_size=WORDS),
        tasks=dict(
            many=task(64, 32, 8, clip=1.0),
            large=task(32, 64, 8, clip=1.0),
            long=task(32, 32, 32, align=1.0),
        ),
        steps=1000,
    )


def takers(experiment: Experiment, steps: int) -> dict[str, Callable[[], object]]:
    """Functions that take `steps` steps of each task, and as many of either of each pair in turn,
    under `jax.set_mesh`."""
    mesh = make_mesh(experiment.mesh)
    experiment.check_mesh(mesh)
    tasks = {
        name: Task(name, config, experiment.preprocess) for name, config in experiment.tasks.items()
    }
    words = experiment.tokenizer.vocab_size
    with jax.set_mesh(mesh):
        model = build_model(experiment, Vocabulary(words, 0, 1))
        fresh, shapes, shardings = fresh_state(experiment, model, mesh)
        programs = compile_turns(
            experiment,
            tasks,
            [Turn((t,)) for t in tasks],
            model,
            abstract_state(shapes, shardings),
            shardings,
            mesh,
        )
        held = [draw_state(fresh, experiment.seed, shardings, mesh)]
    bound = {
        str(turn): program.bind(turn, list(tasks), mesh)
        for program in programs
        for turn in program.turns
    }
    batches = {
        name: (jax.device_put(random_rows(task.config.data, words), batch_sharding(mesh)),)
        for name, task in tasks.items()
    }

    def take(*names: str) -> Callable[[], object]:
        def run() -> object:
            for _ in range(steps):
                for name in names:
                    held[0], (metrics,) = bound[name](held[0], batches[name])
            return metrics["loss"]

        return run

    alone = {name: take(name) for name in tasks}
    return alone | {f"{a} | {b}": take(a, b) for a, b in itertools.combinations(tasks, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="FILE[:ARG], as for jaxvl.train")
    parser.add_argument("--steps", type=int, default=20, help="N, of a task in a row")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args()
    experiment = resolve(Experiment, load_file(args.config) if args.config else small())
    seconds = in_turn(takers(experiment, args.steps), args.rounds)
    step = {
        name: 1e3 * statistics.median(s) / args.steps
        for name, s in seconds.items()
        if name in experiment.tasks
    }
    table = Table(
        title=f"{args.rounds} rounds of {args.steps} steps of a task, in turn; "
        "milliseconds, median",
        title_justify="left",
    )
    for heading in (
        "tasks",
        "step of the first",
        "of the second",
        "of both alternating",
        "a switch",
        "lowest",
        "highest",
    ):
        table.add_column(heading, justify="left" if heading == "tasks" else "right")
    switch = {}
    for a, b in itertools.combinations(experiment.tasks, 2):
        pair = f"{a} | {b}"
        each = [
            1e3 * (p - x - y) / (2 * args.steps)
            for p, x, y in zip(seconds[pair], seconds[a], seconds[b])
        ]
        switch[pair] = {
            "median": statistics.median(each),
            "lowest": min(each),
            "highest": max(each),
        }
        both = 1e3 * statistics.median(seconds[pair]) / (2 * args.steps)
        table.add_row(
            pair,
            f"{step[a]:.2f}",
            f"{step[b]:.2f}",
            f"{both:.2f}",
            *(f"{v:+.3f}" for v in switch[pair].values()),
        )
    publish(
        Console(),
        table,
        {"steps": args.steps, "seconds": seconds, "step_ms": step, "switch_ms": switch},
        args.json,
    )


if __name__ == "__main__":
    main()
