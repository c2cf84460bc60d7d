"""What a run says of itself: its machine, its config, its compiled programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import sys
from collections.abc import Sequence

import jax
from absl import logging
from rich.markup import escape

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import to_dict
from jaxvl.data.bottlenecks import ADVICE, SLOW
from jaxvl.models.functional import Functional
from jaxvl.training.compile import Program
from jaxvl.training.experiment import Experiment
from jaxvl.training.meter import Meter
from jaxvl.training.optim import optimiser
from jaxvl.training.stragglers import Straggler
from jaxvl.training.writer import Writer


def describe_program(program: Program, model: Functional, writer: Writer) -> None:
    """Says and records what was compiled: for which tasks, how much of the model it trains, what it
    costs."""
    names = " | ".join(map(str, program.turns))
    cost = program.cost
    trains, parameters = (
        sum(math.prod(model.params[p].shape) for p in paths)
        for paths in (program.learns, model.params)
    )
    writer.record(
        0,
        "event",
        f"compile/{program.turns[0]}",
        {
            "tasks": names,
            "trains": trains,
            "compile_seconds": program.seconds,
            "gflop": cost.flops / 1e9,
            "model_gflop": cost.model_flops / 1e9,
            "state_mib": cost.state / 2**20,
            "temporary_mib": cost.temporary / 2**20,
            **cost.collectives,
        },
    )
    again = (cost.flops - cost.model_flops) / 1e9
    recomputed = f" ({again:,.1f} of them recomputation)" if again > 0 else ""
    writer.say(
        f"step of {names}: compiled in {program.seconds:.1f} s; trains {trains:,} of "
        f"{parameters:,} parameters; "
        f"{cost.flops / 1e9:,.1f} GFLOP{recomputed}; per device {cost.state / 2**20:,.0f} "
        f"MiB state and batch, "
        f"{cost.temporary / 2**20:,.0f} MiB temporary"
    )


def describe_fitted(experiment: Experiment, devices: int) -> str:
    """A sentence of a run that goes on with fewer devices than its config is written for."""
    chunks = ", ".join(f"{name} {task.microbatches}" for name, task in experiment.tasks.items())
    return (
        f"[yellow]{devices} of {experiment.resume.devices} devices[/]: the same global batch, in "
        f"more microbatches ({escape(chunks)})"
    )


def describe_adapters(experiment: Experiment, model: Functional, writer: Writer) -> None:
    """Says and records which modules of a model have adapters, and how much is trained."""
    if not experiment.adapters:
        return
    _, trained = optimiser(experiment.optim, model.axes, model.frozen)
    sizes = {path: math.prod(shape.shape) for path, shape in model.params.items()}
    trains = sum(size for path, size in sizes.items() if trained[path])
    parameters = sum(sizes.values())
    parts = []
    for label, adapter in experiment.adapters.items():
        inside = re.compile(rf"(?:^|(.+)/)adapter/{re.escape(label)}/")
        found = [match[1] or "the model" for path in sizes if (match := inside.match(path))]
        modules = list(dict.fromkeys(found))
        shown = ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if modules[4:] else "")
        parts.append(f"{adapter.registered_name} {label} on {shown}")
    writer.record(0, "event", "adapters", {"trains": trains, "parameters": parameters})
    writer.say(
        escape(
            f"adapters: {'; '.join(parts)}; trainable {trains:,} of {parameters:,} parameters, "
            f"{100 * trains / parameters:.2g} %; all others are frozen"
        )
    )


def describe_goodput(meter: Meter, step: int, writer: Writer) -> None:
    """Says and records where the time of this process went."""
    shares = meter.shares()
    seconds = meter.wall()
    writer.record(step, "event", "goodput", {"wall_seconds": seconds, **shares})
    names = {
        "startup": "start-up",
        "data": "data wait",
        "evaluation": "evaluation",
        "checkpoint": "checkpoints",
    }
    rest = ", ".join(
        f"{words} {100 * shares[f'share_{name}']:.1f} %" for name, words in names.items()
    )
    minutes = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    writer.say(f"goodput {100 * shares['goodput']:.1f} % of {minutes} min; {rest}")


def describe_input(meter: Meter, step: int, writer: Writer) -> None:
    """Says, where steps have waited for data, which stage of the input limits them and what to
    change."""
    waited = meter.shares()["share_data"] / max(
        meter.shares()["share_data"] + meter.shares()["goodput"], 1e-9
    )
    worked = meter.input_shares()
    if waited < SLOW or not worked:
        return
    stage = max(worked, key=worked.get)
    writer.record(
        step,
        "event",
        "slow_input",
        {"data_wait": waited, **{f"input_{name}": share for name, share in worked.items()}},
    )
    parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in worked.items())
    writer.say(
        f"[yellow]slow input[/] steps waited {100 * waited:.0f} % of their time; its work: "
        f"{parts}; try {ADVICE[stage]}"
    )


def describe_stragglers(slow: Sequence[Straggler], step: int, writer: Writer) -> None:
    """Says and records which processes have made the others wait, and with what."""
    for one in slow:
        writer.record(step, "event", f"straggler/{one.process}", dataclasses.asdict(one))
        writer.say(f"[yellow]slow[/] {escape(str(one))}")


def describe_machine() -> dict[str, Json]:
    """Processor, devices, versions, command line: what the report says of where a figure comes
    from."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [
            line.split(":", 1)[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    devices = jax.devices()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "system": platform.platform(),
        "command": " ".join(sys.orig_argv),
    }


def write_workdir(experiment: Experiment, workdir: paths.Path) -> None:
    """`config.json` (resolved) and `machine.json`."""
    if jax.process_index() == 0:
        paths.write_text(workdir / "config.json", json.dumps(to_dict(experiment), indent=2))
        paths.write_text(workdir / "machine.json", json.dumps(describe_machine(), indent=2))
        logging.info("config and machine written to %s", workdir)
