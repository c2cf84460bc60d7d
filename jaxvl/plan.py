"""Say what a run would need before anyone pays for it.

    python -m jaxvl.plan --config=configs/align.py:variant=b7 --topology=v5e:16x16

Compiles the step of every task for devices that are not here and prints, from the compiler, bytes
per device, collectives, FLOP and the least time of a step; and which mesh axes shard which
parameters.

Options:
  --config=FILE[:ARG]     as for jaxvl.train, with its `--config.KEY=VALUE`
  --topology=NAME:SIZE    v4:2x2x1, v5e:4x4, v5p:4x4x4, v6e:16x16 (pip install "jaxvl[tpu]");
                          h200:1x1x8 ("jaxvl[gpu]")
  --stage=NAME            which, of a config with stages
  --json=FILE             the figures as JSON

Exit status: 0 it fits, 1 the compiler refused it (out of memory, say), 2 wrong config.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxvl import paths
from jaxvl.command import FAILED, run_command, start, tell
from jaxvl.config import check, to_path
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.sharding.mesh import make_mesh
from jaxvl.sharding.topology import chip, compile_only_devices
from jaxvl.training.build import Vocabulary, build_model, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.training.cost import Cost
from jaxvl.training.experiment import Experiment, parse_command
from jaxvl.training.stages import one_of
from jaxvl.training.teacher_models import make_teachers

GIB = 2**30


class PlanFigures(TypedDict):
    """What `plan` finds out."""

    topology: str
    devices: int
    mesh: dict[str, int]
    parameters: int
    bytes: dict[str, int]
    sharding: dict[str, int]
    tasks: dict[str, dict[str, Cost | float]]


def plan(experiment: Experiment, topology: str) -> PlanFigures:
    """The figures.

    Returns:
      `parameters` (their number), `bytes` (per device: `parameters`, `optimiser`, `average`,
      `teachers`, `objectives`),
      `sharding` (mesh axes -> number of parameters), `tasks` (task, or `A + B` where a step sums
      them, -> `Cost` and `seconds`, the least time of a step by the chip's FLOP/s), `devices`.

    Raises:
      ConfigError: the config, or the topology.
      jax.errors.JaxRuntimeError: the compiler refuses the program.
    """
    mesh = make_mesh(experiment.mesh, compile_only_devices(topology))
    experiment.check_mesh(mesh)
    tokenizer = experiment.tokenizer
    vocabulary = (
        Vocabulary(tokenizer.vocab_size, 0, 1)
        if tokenizer.kind == "unigram"
        else make_tokenizer(tokenizer, ())
    )
    model = build_model(experiment, vocabulary)
    tasks = make_tasks(experiment)
    teachers = make_teachers(experiment, model, vocabulary)
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(experiment, model, mesh, teachers)
        abstract = abstract_state(shapes, shardings)
        turns = experiment.schedule.build(list(tasks), experiment.steps).turns
        programs = compile_turns(
            experiment, tasks, turns, model, abstract, shardings, mesh, teachers
        )
    costs = {str(turn): program.cost for program in programs for turn in program.turns}
    sharding = collections.Counter()
    for path, shape in model.params.items():
        names = itertools.chain.from_iterable(
            (a,) if isinstance(a, str) else a or () for a in shardings.params[path].spec
        )
        sharding[" x ".join(a for a in names if mesh.shape[a] > 1) or "no axis"] += math.prod(
            shape.shape
        )
    return {
        "topology": topology,
        "devices": mesh.size,
        "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1},
        "parameters": sum(math.prod(s.shape) for s in model.params.values()),
        "bytes": {
            "parameters": _bytes(shapes.params, shardings.params),
            "optimiser": _bytes(shapes.opt_state, shardings.opt_state),
            "average": _bytes(shapes.ema, shardings.ema),
            "teachers": _bytes(shapes.teachers, shardings.teachers),
            "objectives": _bytes(shapes.objective_state, shardings.objective_state),
        },
        "sharding": dict(sharding),
        "tasks": {
            name: {"cost": cost, "seconds": cost.flops / mesh.size / chip(topology).flops}
            for name, cost in costs.items()
        },
    }


def _bytes(shapes: Any, shardings: Any) -> int:
    """Bytes per device."""
    sizes = jax.tree.map(
        lambda s, where: math.prod(where.shard_shape(s.shape)) * np.dtype(s.dtype).itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def show(console: Console, figures: PlanFigures) -> None:
    memory = chip(figures["topology"]).memory
    part = figures["bytes"]
    console.print(
        f"{figures['devices']} x {figures['topology']}, mesh "
        f"{figures['mesh'] or 'of one device'}; {figures['parameters']:,} parameters"
    )
    console.print(
        "per device: " + ", ".join(f"{k} {v / GIB:.2f} GiB" for k, v in part.items() if v)
    )
    console.print(
        "sharded over: " + "; ".join(f"{escape(k)} {v:,}" for k, v in figures["sharding"].items())
    )
    table = Table()
    for heading in (
        "task",
        "state + batch GiB",
        "temporary GiB",
        "of memory",
        "TFLOP a step",
        "least seconds",
    ):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, task in figures["tasks"].items():
        cost: Cost = task["cost"]
        table.add_row(
            name,
            f"{cost.state / GIB:.2f}",
            f"{cost.temporary / GIB:.2f}",
            f"{100 * (cost.state + cost.temporary) / memory:.0f} %",
            f"{cost.flops / 1e12:,.2f}",
            f"{task['seconds']:.3f}",
        )
    console.print(table)
    for name, task in figures["tasks"].items():
        console.print(
            f"collectives of {name}: "
            + (", ".join(f"{n} {k}" for k, n in task["cost"].collectives.items()) or "none")
        )
    console.print(
        "Least seconds: products and convolutions at the chip's full bfloat16 speed; what is "
        "reached is often half of it."
    )


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (paths.PathError,))


def _run(argv: Sequence[str], console: Console) -> int:
    command = parse_command(argv, {"topology": None, "json": None, "stage": None})
    for needed, given in (
        ("--config", command.config),
        ("--topology", command.options.get("topology")),
    ):
        check(bool(given), needed, "is required; see python -m jaxvl.plan --help")
    try:
        figures = plan(one_of(command, command.options.get("stage")), command.options["topology"])
    except jax.errors.JaxRuntimeError as error:
        tell(console, "does not compile", error)
        return FAILED
    show(Console(), figures)
    if "json" in command.options:
        plain = {
            name: {"seconds": task["seconds"], **vars(task["cost"])}
            for name, task in figures["tasks"].items()
        }
        text = json.dumps({**figures, "tasks": plain}, indent=1) + "\n"
        paths.write_text(to_path(command.options["json"], "--json"), text)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    start(main, __doc__)
