"""Say what a run would need, take and cost before anyone pays for it.

    python -m jaxvl.plan --config=configs/align.py:variant=b7 --topology=v5e:16x16
    python -m jaxvl.plan --config=configs/coca.py:variant=2b --topology=v5e:16x16 --search

Compiles the step of every task for devices that are not here and prints, from the compiled
program: bytes per device by kind, collectives (kind, bytes, mesh axes, whether something is
computed meanwhile), the least time of a step by compute, memory and network, a range of steps and
examples a second, their price, and which mesh axes shard which parameters. Nothing is measured.

Options:
  --config=FILE[:ARG]     as for jaxvl.train, with its `--config.KEY=VALUE`
  --topology=NAME:SIZE    v4:2x2x1, v5e:4x4, v5p:4x4x4, v6e:16x16 (pip install "jaxvl[tpu]");
                          2*v5e:16x16 for two slices, `data` between them; h100:1x1x8, h200:1x2x8
                          (2 hosts of 8), b200:1x1x8 ("jaxvl[gpu]"); cpu:8, of this machine
  --stage=NAME            which, of a config with stages
  --json=FILE             all figures; keys: jaxvl/planning/figures.py
  --prices=FILE           US dollars for a chip and hour, instead of jaxvl/planning/prices.yaml
  --show-prices           prints that file, to copy and edit
  --search                compiles other meshes, remat policies, microbatches and dtypes of moments
                          too, with the best of them other collectives of contrastive losses, and
                          says which is best and why the others lost
  --budget=SECONDS        of the search, 1800 by default
  --peak                  tells what lives when temporaries are at their most: bytes, shapes, and what
                          made them
  --quick                 the compiler optimises little: in less time, of a slower and larger program
                          than a run's

Exit status: 0 it fits, 1 the compiler refused it or it has no room, 2 wrong config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

import jax
from rich.console import Console

from jaxvl import paths
from jaxvl.command import FAILED, run_command, start
from jaxvl.config import ConfigError, check, to_path
from jaxvl.planning.figures import Plan
from jaxvl.planning.measure import Setting, measure
from jaxvl.planning.prices import own_prices, read_prices
from jaxvl.planning.search import search
from jaxvl.planning.show import show
from jaxvl.planning.show_search import show_search
from jaxvl.sharding.topology import parse_topology
from jaxvl.training.experiment import Command, parse_command
from jaxvl.training.stages import one_of

WIDTH = 160  # columns
FLAGS = ("search", "show-prices", "quick", "peak")
OPTIONS = {
    "topology": None,
    "json": None,
    "stage": None,
    "prices": None,
    "budget": "1800",
    **dict.fromkeys(FLAGS),
}


def _console() -> Console:
    """The terminal; of a file or a pipe, wide enough for the tables."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else WIDTH)


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (paths.PathError,))


def _run(argv: Sequence[str], console: Console) -> int:
    command = parse_command(argv, OPTIONS, flags=FLAGS)
    if "show-prices" in command.options:
        print(own_prices(), end="")
        return 0
    for needed, given in (
        ("--config", command.config),
        ("--topology", command.options.get("topology")),
    ):
        check(bool(given), needed, "is required; see python -m jaxvl.plan --help")
    costs = read_prices(command.options.get("prices"))
    topology = command.options["topology"]
    _have_cpus(topology)
    experiment = one_of(command, command.options.get("stage"))
    how = {flag: flag in command.options for flag in ("quick", "peak")}
    setting = Setting.of(topology, costs, **how)
    if "search" in command.options:
        return _search(command, setting, console)
    with console.status("") as status:
        plan = measure(experiment, setting, status.update)
    show(_console(), plan, costs.get(setting.topology.name))
    _write(command, as_json(plan))
    return 0 if plan.fits else FAILED


def _search(command: Command, setting: Setting, console: Console) -> int:
    text = command.options["budget"]
    try:
        budget = float(text)
    except ValueError:
        raise ConfigError("--budget", f"{text!r} must be seconds") from None
    check(budget > 0, "--budget", f"{text!r} must be > 0 seconds")

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    found = search(command, setting, budget, tell)
    show_search(_console(), found)
    _write(command, dataclasses.asdict(found))
    return 0 if found.best else FAILED


def as_json(plan: Plan) -> dict[str, object]:
    """All figures, with those that follow from others."""
    figures = dataclasses.asdict(plan)
    figures["state"]["total"] = plan.state.total
    figures["fits"] = plan.fits
    for step, written in zip(plan.steps, figures["steps"]):
        written["bytes"]["total"] = step.bytes.total
        if step.roofline is not None:
            derived = {k: getattr(step.roofline, k) for k in ("limit", "low", "high")}
            written["roofline"] |= derived
    return figures


def _write(command: Command, figures: dict[str, object]) -> None:
    if "json" in command.options:
        text = json.dumps(figures, indent=1) + "\n"
        paths.write_text(to_path(command.options["json"], "--json"), text)


def _have_cpus(topology: str) -> None:
    """Simulates as many CPU devices as a topology asks for, if JAX has not begun yet."""
    parsed = parse_topology(topology)
    if parsed.chip is None and parsed.size.isdigit():
        with contextlib.suppress(RuntimeError):  # it has
            jax.config.update("jax_num_cpu_devices", int(parsed.size))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    # A program for absent devices can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    start(main, __doc__)
