"""What the compiled steps of the three core systems cost, and whether a change makes them dearer.

    python -m jaxvl.bench.programs --json=before.json
    python -m jaxvl.bench.programs --against=before.json       # exit status 1 beyond 1 %

`setup` compiles the steps of ALIGN, CoCa and IMP as their demos have them, but with fewer layers,
on generated data and at a batch of 64: for one device, and for eight simulated ones (parameters
sharded over four, the batch over all).

Of each program: FLOP and bytes accessed by XLA's cost analysis, bytes of temporaries, arguments and
results by its memory analysis, and the number of HLO instructions after optimisation. All of these
are decided before machine code is made, so LLVM's costly passes are left out; the figures repeat
exactly with one version of jax.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxvl.bench.harness import publish
from jaxvl.config import load_file, override, resolve
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.training.experiment import Experiment
from jaxvl.training.setup import setup
from jaxvl.training.writer import Writer

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
CONFIGS = {
    "align": "configs/align_emoji.py",
    "coca": "configs/coca_emoji.py",
    "imp": "configs/imp_demo.py",
}
# Fewer layers: each kind of them is still there, and compiling takes half the time.
SMALLER = {
    "align": {"model.image.depth": "0.5"},
    "coca": {"model.image.depth": "0.5", "model.multimodal": "1"},
    "imp": {"model.depth": "1"},
}
MESHES = {"1 device": MeshConfig(data=1), "8 devices": MeshConfig(data=2, fsdp=4)}
SHAPES = dict(name="shapes", size=48, variants=1, split="train_b")
BATCH = 64
TOLERANCE = 0.01
Figures = dict[str, float]


def experiment_of(system: str, mesh: MeshConfig) -> Experiment:
    """A system's config with fewer layers and small batches, on generated data, without
    evaluators."""
    node = load_file(CONFIGS[system])
    node.evals = {}
    node.checkpoint = {}
    for task in node.tasks.values():
        clips = bool({"video", "waveform"} & {*task.data.fields})
        task.data.source = ConfigDict(dict(SHAPES, clips=clips))
        if "waveform" in task.data.fields:
            task.data.fields.waveform.languages = ("en", "de", "fr")
    changes = dict(SMALLER[system])
    changes |= {f"tasks.{name}.data.batch": str(BATCH) for name in node.tasks}
    changes |= {f"mesh.{axis}": str(getattr(mesh, axis)) for axis in ("data", "fsdp")}
    return resolve(Experiment, override(node, changes))


@contextlib.contextmanager
def recorded() -> Iterator[list[jax.stages.Compiled]]:
    """The programs that are compiled ahead of time inside."""
    programs = []
    compile_it = jax.stages.Lowered.compile

    def compile_and_keep(
        lowered: jax.stages.Lowered, *args: Any, **options: Any
    ) -> jax.stages.Compiled:
        programs.append(compile_it(lowered, *args, **options))
        return programs[-1]

    with mock.patch.object(jax.stages.Lowered, "compile", compile_and_keep):
        yield programs


def compiled_steps(experiment: Experiment) -> list[jax.stages.Compiled]:
    """The programs of a run, in the order in which `setup` compiles them."""
    count = experiment.mesh.data * experiment.mesh.fsdp
    mesh = make_mesh(experiment.mesh, jax.devices()[:count])
    quiet = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        workdir = pathlib.Path(folder)
        writer = Writer(workdir, experiment.steps, tensorboard=False, console=quiet)
        with writer, recorded() as programs:
            run = setup(experiment, mesh, workdir, writer)
            run.close()
    return programs


def figures_of(program: jax.stages.Compiled) -> Figures:
    """What one program costs, per device."""
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    memory = program.memory_analysis()
    return {
        "flop": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "result_bytes": memory.output_size_in_bytes,
        "instructions": len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", program.as_text(), re.M)),
    }


def measure(systems: Sequence[str], log: Callable[[str], None]) -> dict[str, list[Figures]]:
    """`SYSTEM, DEVICES` -> figures of each program."""
    found = {}
    for name in systems:
        for devices, mesh in MESHES.items():
            began = time.perf_counter()
            programs = compiled_steps(experiment_of(name, mesh))
            found[f"{name}, {devices}"] = [figures_of(program) for program in programs]
            seconds = time.perf_counter() - began
            log(f"{name}, {devices}: {len(programs)} programs in {seconds:.0f} s")
    return found


def changes_of(
    before: Mapping[str, list[Figures]], now: Mapping[str, list[Figures]]
) -> list[tuple[str, str, float, float]]:
    """What has changed by more than `TOLERANCE`: (program, figure, before, now). A system that only
    one of the two has is left out."""
    found = []
    for system in before.keys() & now.keys():
        old = before[system]
        new = now[system]
        if len(old) != len(new):
            found.append((system, "programs", len(old), len(new)))
            continue
        for number, (a, b) in enumerate(zip(old, new), 1):
            found += [
                (f"{system}, program {number}", figure, a[figure], b[figure])
                for figure in a
                if abs(b[figure] - a[figure]) > TOLERANCE * abs(a[figure])
            ]
    return sorted(found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--against", type=pathlib.Path, help="such a file of before")
    args = parser.parse_args(argv)
    console = Console(width=110)
    now = measure(args.systems, console.print)
    table = Table(title=f"compiled steps at a batch of {BATCH}", title_justify="left")
    for heading in ("program", "GFLOP", "MB accessed", "MB temporary", "MB arguments", "HLO"):
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for system, programs in now.items():
        for number, figures in enumerate(programs, 1):
            amounts = [
                figures["flop"] / 1e9,
                figures["bytes_accessed"] / 1e6,
                figures["temporary_bytes"] / 1e6,
                figures["argument_bytes"] / 1e6,
            ]
            row = [f"{amount:,.2f}" for amount in amounts] + [str(figures["instructions"])]
            table.add_row(f"{system}, program {number}", *row)
    publish(console, table, {"batch": BATCH, "programs": now}, args.json)
    if args.against is None:
        return 0
    changed = changes_of(json.loads(args.against.read_text())["programs"], now)
    for program, figure, old, new in changed:
        console.print(f"{program}: {figure} {old:,.0f} -> {new:,.0f} ({new / old - 1:+.2%})")
    if not changed:
        console.print(f"nothing has changed by more than {TOLERANCE:.0%}")
    return 1 if changed else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])  # read later
    sys.exit(main())
