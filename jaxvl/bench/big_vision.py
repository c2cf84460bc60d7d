"""SigLIP of big_vision beside ours by one compiler: what a training step of each needs.

    git clone https://github.com/google-research/big_vision
    python -m jaxvl.bench.big_vision --checkout=big_vision
    python -m jaxvl.bench.big_vision --checkout=big_vision --variant=L/16 --batch=32768 \\
        --topology=v5e:16x16 --sides=big_vision,chunks

Compiled for chips that are not here; nothing is run. Both sides have `configs/siglip.py`'s sizes:
pictures of 224 pixels, 64 tokens of 32,000, scanned layers, AdamW with float32 moments and warm-up,
the state donated, norms of gradients, parameters and updates among the results.

    big_vision    its own model, optimiser and sharding rules, from the checkout: layers recomputed
                  as a whole (`nothing_saveable`), pictures' tower in bfloat16, texts' in float32,
                  for which it has no choice
    full          ours, layers recomputed as a whole, in bfloat16
    chunks        the same, a quarter of a device's rows at a time
    chunks+fsdp   the same, parameters and moments sharded over `--fsdp` chips

Figures are of one device and one step. "temporaries" is what the compiler calls so; "peak less
arguments" is what lives beside the arguments when most does. FLOP are those of products and
convolutions, recomputation included, counted before the compiler.

Each side is compiled in a process of its own, for minutes; big_vision's needs the packages that its
files import, TensorFlow among them (the command names the first that is missing).
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.big_vision_side import STRATEGIES, Sizes, check_checkout, load, trace
from jaxvl.bench.harness import isolated, publish
from jaxvl.config import ConfigError, check, load_file, override, resolve
from jaxvl.config.errors import one_line
from jaxvl.hlo import collectives, read, traffic
from jaxvl.planning.figures import Refusal, StepBytes
from jaxvl.planning.measure import Setting, measure, per_device, refusal, step_bytes
from jaxvl.sharding.topology import compile_only_devices, parse_topology
from jaxvl.training.cost import count_flops
from jaxvl.training.experiment import Experiment

CONFIG = "configs/siglip.py"
PEER = "big_vision"
REMAT = {"full": "full", "chunks": "chunks", "chunks+fsdp": "chunks"}  # of our sides
SIDES = (PEER, *REMAT)
MOST_SHARDS = 16  # over which docs/measured.md shards
WIDTH = 130  # columns of the table
GIB = 2**30
MIB = 2**20
# Of the processes: no chip is looked for, and a cache cannot give back programs for absent ones.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
Row = dict[str, Json]


def experiment_of(variant: str, batch: int, side: str, fsdp: int) -> Experiment:
    """Ours. Raises ConfigError: the config cannot be had."""
    shards = fsdp if side.endswith("fsdp") else 1
    node = load_file(f"{CONFIG}:variant={variant},batch={batch},fsdp={shards}")
    remat = REMAT[side]
    changes = {f"model.{tower}.remat": remat for tower in ("image", "text")}
    return resolve(Experiment, override(node, changes))


def by_kind(found: Iterable[tuple[str, int, int, float]]) -> dict[str, Json]:
    """Kind -> `number` in the program, `times` a step, `sent_mib`. `found`: kind, number, times,
    bytes sent in a step."""
    kinds: dict[str, dict[str, float]] = {}
    for kind, number, times, sent in found:
        row = kinds.setdefault(kind, {"number": 0, "times": 0, "sent_mib": 0.0})
        row["number"] += number
        row["times"] += times
        row["sent_mib"] += sent / MIB
    return kinds


def refused(refusal: Refusal) -> Row:
    if refusal.needed is None:
        return {"failed": refusal.message.splitlines()[0]}
    needed = refusal.needed / GIB
    available = refusal.available / GIB
    failed = f"refused: needs {needed:.1f} GiB of {available:.1f}"
    return {"failed": failed, "needed_gib": needed, "available_gib": available}


def memory_of(size: StepBytes) -> Row:
    """GiB; None for what the compiler does not tell."""
    arguments = size.state + size.batch
    above = None if size.peak is None else (size.peak - arguments) / GIB
    return {
        "temporaries_gib": size.temporaries / GIB,
        "above_arguments_gib": above,
        "arguments_gib": arguments / GIB,
    }


def compiled_peer(checkout: pathlib.Path, sizes: Sizes, topology: str, strategy: str) -> Row:
    """big_vision's figures."""
    library = load(checkout)
    began = time.perf_counter()
    step = trace(library, sizes, topology, strategy)
    state = per_device(step.state, step.shardings)
    try:
        compiled = step.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return refused(refusal(PEER, str(error), state))
    seconds = time.perf_counter() - began
    program = read(compiled)
    found = collectives(program, step.devices)
    on_cpu = parse_topology(topology).chip is None
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(step.state["params"])),
        **memory_of(step_bytes(compiled, state, on_cpu=on_cpu)),
        "traffic_gib": traffic(program) / GIB,
        "tflop": count_flops(step.traced.jaxpr) / step.devices / 1e12,
        "collectives": by_kind((c.kind, 1, c.times, c.sent * c.times) for c in found),
        "seconds": seconds,
    }


def compiled_ours(side: str, variant: str, batch: int, topology: str, fsdp: int) -> Row:
    """Ours, of `REMAT`."""
    plan = measure(experiment_of(variant, batch, side, fsdp), Setting.of(topology, {}))
    if plan.refused:
        return refused(plan.refused[0])
    [step] = plan.steps
    return {
        "parameters": plan.parameters,
        **memory_of(step.bytes),
        "traffic_gib": step.traffic / GIB,
        "tflop": step.flops / plan.devices / 1e12,
        "collectives": by_kind((c.kind, c.number, c.times, c.sent) for c in step.collectives),
        "seconds": step.compile_seconds,
    }


def peer_side(*args: object) -> Callable[[], Row]:
    return functools.partial(compiled_peer, *args)


def own_side(*args: object) -> Callable[[], Row]:
    return functools.partial(compiled_ours, *args)


def rows_of(args: argparse.Namespace, log: Callable[[str], None]) -> list[Row]:
    """A row for each side that is asked for.

    Raises:
      ConfigError: an argument cannot be used.
    """
    devices = len(compile_only_devices(args.topology))
    fsdp = args.fsdp or min(devices, MOST_SHARDS)
    check(devices % fsdp == 0, "--fsdp", f"{fsdp} must divide the {devices} chips")
    check(args.batch % devices == 0, "--batch", f"{args.batch} must divide by {devices} chips")
    sizes = Sizes.of(experiment_of(args.variant, args.batch, "full", fsdp), args.variant)
    if PEER in args.sides:
        check_checkout(args.checkout)
    rows = []
    for side in args.sides:
        if side == PEER:
            name = f"{PEER}, {args.strategy}"
            made = isolated(
                peer_side,
                args.checkout,
                sizes,
                args.topology,
                args.strategy,
                environment=ENVIRONMENT,
            )
        else:
            name = f"jaxvl, {side}" + (f" {fsdp}" if side.endswith("fsdp") else "")
            ours = (side, args.variant, args.batch, args.topology, fsdp)
            made = isolated(own_side, *ours, environment=ENVIRONMENT)
        with made as take:
            try:
                row = {"side": name, **take()}
            except RuntimeError as error:  # the others are worth having
                row = {"side": name, "failed": one_line(error)}
        log(f"{name}: {row.get('failed') or 'compiled in {:.0f} s'.format(row['seconds'])}")
        rows.append(row)
    return rows


FIGURES = {
    "temporaries_gib": "temporaries GiB",
    "above_arguments_gib": "peak less arguments GiB",
    "traffic_gib": "through memory GiB",
    "tflop": "TFLOP",
}


def table(rows: Sequence[Row], title: str) -> Table:
    """One column for each side; shares are of the first that compiled."""
    caption = "collectives: number in the program, times a step, MiB that a device sends in a step"
    out = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    out.add_column("per device")
    for row in rows:
        out.add_column(row["side"], justify="right")
    base = next((row for row in rows if "failed" not in row), None)
    for key, heading in FIGURES.items():
        out.add_row(heading, *(_figure(row, key, base) for row in rows))
    kinds = dict.fromkeys(kind for row in rows for kind in row.get("collectives", {}))
    for kind in kinds:
        out.add_row(kind, *(_sent(row, kind) for row in rows))
    if any("failed" in row for row in rows):
        out.add_row("", *(row.get("failed", "") for row in rows))
    return out


def _figure(row: Row, key: str, base: Row | None) -> str:
    if "failed" in row:
        return ""
    if row[key] is None:
        return "not told"
    share = "" if row is base else f" ({row[key] / base[key]:.2f} x)"
    return f"{row[key]:,.2f}{share}"


def _sent(row: Row, kind: str) -> str:
    found = row.get("collectives", {}).get(kind)
    if found is None:
        return ""
    return f"{found['number']}, {found['times']:,}, {found['sent_mib']:,.0f}"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=pathlib.Path, help="a clone of big_vision")
    parser.add_argument("--variant", default="B/16", help="of both towers, as B/16 or L/16")
    parser.add_argument("--batch", type=int, default=4096, help="rows of all devices together")
    parser.add_argument("--topology", default="v5e:4x4", help="see jaxvl.sharding.topology")
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default="replicated", help="big_vision's, of its state"
    )
    parser.add_argument(
        "--fsdp",
        type=int,
        help=f"chips over which ours is sharded (default: all, {MOST_SHARDS} at most)",
    )
    parser.add_argument(
        "--sides",
        type=lambda text: text.split(","),
        default=list(SIDES),
        help=f"default: {','.join(SIDES)}",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    for side in args.sides:
        if side not in SIDES:
            parser.error(f"--sides: {side!r} is not valid; must be of {', '.join(SIDES)}")
    if PEER in args.sides and args.checkout is None:
        parser.error(f"--checkout: is required for the side {PEER}")
    console = Console(width=WIDTH)
    try:
        rows = rows_of(args, console.print)
    except ConfigError as error:
        parser.error(str(error))
    title = f"SigLIP {args.variant}, {args.batch:,} rows on {args.topology}"
    options = {key: getattr(args, key) for key in ("variant", "batch", "topology", "strategy")}
    publish(console, table(rows, title), {**options, "rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
