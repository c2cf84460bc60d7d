"""The contrastive core: its time, its memory on a mesh, and what the compilers say.

    python -m jaxvl.bench.contrastive                        # time on this machine, all implementations in turn
    python -m jaxvl.bench.contrastive --memory               # temporary bytes per device on meshes of 8 to 32 devices
    python -m jaxvl.bench.contrastive --compile v4,v5e,v6e   # memory, FLOP and roofline on TPUs that are not here
    python -m jaxvl.bench.contrastive --scaling v5e:2x4,v5e:8x8,v5e:16x16   # what devices receive as they become more

"materialised" is the loss as one writes it without this package: the logits, their log-softmax,
autodiff by XLA.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import in_turn, publish, ratio
from jaxvl.config import ConfigError
from jaxvl.hlo import collectives, read
from jaxvl.kernels.contrastive import contrastive_loss, plan
from jaxvl.sharding.topology import GPUS, chip, compile_only_devices, parse_topology

MIB = 2**20
COLLECTIVES = {"ring": "ring", "gather": "all-gather", "grid": "grid"}


def materialised(u, v, log_scale, bias, kind: str):
    """Mean over the batch of both directions' softmax losses, or of the sigmoid loss, from `[B, B]`
    logits."""
    logits = jnp.exp(log_scale) * jnp.dot(u, v.T, preferred_element_type=jnp.float32) + bias
    if kind == "softmax":
        labels = jnp.arange(len(u))
        both = (
            optax.softmax_cross_entropy_with_integer_labels(x, labels) for x in (logits, logits.T)
        )
        return sum(jnp.mean(x) for x in both) / 2
    signs = 2 * jnp.eye(len(u)) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(u)


def loss_and_gradients(kind: str, **options: Any):
    """Jitted `(u, v, log_scale, bias) -> loss and its four gradients`."""

    def loss(u, v, log_scale, bias):
        if options["implementation"] == "materialised":
            return materialised(u, v, log_scale, bias, kind)
        return contrastive_loss(u, v, log_scale, kind=kind, bias=bias, **options)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))


def operands(
    batch: int, width: int, dtype: DTypeLike, mesh: Mesh
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the loss' arguments, rows sharded over the mesh."""
    rows = jax.ShapeDtypeStruct(
        (batch, width), dtype, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    return rows, rows, scalar, scalar


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def compiled(kind: str, shapes, mesh: Mesh, **options: Any):
    with jax.set_mesh(mesh):
        return loss_and_gradients(kind, **options).lower(*shapes).compile()


# --------------------------------------------------------------------------------------------------
# Time


def time_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Median seconds per batch size and implementation, and the compiler's temporary bytes."""
    default = plan(
        (max(args.batch),) * 2 + (args.width,), args.dtype, kind=args.kind
    ).implementation
    for batch in args.batch:
        rng = np.random.default_rng(0)
        u, v = (rng.standard_normal((batch, args.width), np.float32) for _ in range(2))
        u, v = (
            jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), args.dtype) for x in (u, v)
        )
        inputs = u, v, jnp.float32(np.log(1 / 0.07)), jnp.float32(-10.0)
        takers = {}
        memory = {}
        for name in dict.fromkeys((default, "chunked", "materialised")):
            try:
                program = (
                    loss_and_gradients(args.kind, implementation=name).lower(*inputs).compile()
                )
                jax.block_until_ready(program(*inputs))
            except (
                jax.errors.JaxRuntimeError
            ) as error:  # the materialised one is the first that no longer fits
                yield {"batch": batch, "implementation": name, "failed": why(error)}
                continue
            takers[name] = functools.partial(program, *inputs)
            memory[name] = program.memory_analysis().temp_size_in_bytes
        seconds = in_turn(takers, args.rounds)
        for name in takers:
            median = statistics.median(seconds[name])
            yield {
                "batch": batch,
                "implementation": name,
                "seconds": median,
                "all_seconds": seconds[name],
                # Forward one product of 2 B^2 D FLOP, backward three; whoever computes logits again
                # does not count that.
                "tflop_per_second": 6 * batch**2 * args.width / median / 1e12,
                "temporary_mib": memory[name] / MIB,
                "speed": ratio(seconds, name, "materialised")[0]
                if "materialised" in takers
                else None,
            }


# --------------------------------------------------------------------------------------------------
# Memory on a mesh


def memory_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Temporary bytes per device as the batch grows with the mesh."""
    devices = jax.devices()
    for n in args.devices:
        mesh = data_mesh(devices[:n])
        shapes = operands(args.per_device * n, args.width, args.dtype, mesh)
        takers = {
            name: dict(implementation="chunked", collective=collective)
            for collective, name in COLLECTIVES.items()
        }
        for name, options in {
            **takers,
            "materialised": dict(implementation="materialised"),
        }.items():
            program = compiled(args.kind, shapes, mesh, **options)
            yield {
                "devices": n,
                "batch": args.per_device * n,
                "implementation": name,
                "temporary_mib": temporary(program) / MIB,
            }


def why(error: Exception) -> str:
    return (
        "out of memory" if "RESOURCE_EXHAUSTED" in str(error) else str(error).splitlines()[0][:60]
    )


def temporary(program: jax.stages.Compiled) -> int:
    return program.memory_analysis().temp_size_in_bytes


# --------------------------------------------------------------------------------------------------
# Accelerators that are not here


def compile_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Temporary bytes and the roofline of each implementation on one device of each topology, as
    its compiler has it."""
    for topology in args.compile:
        devices = compile_only_devices(topology)
        mesh = data_mesh(devices if ":" in topology else devices[:1])
        shapes = operands(args.batch[-1], args.width, args.dtype, mesh)
        for name in (*_kernels(topology), "chunked", "materialised"):
            row = {
                "topology": topology,
                "devices": mesh.size,
                "batch": args.batch[-1],
                "implementation": name,
            }
            try:
                program = compiled(args.kind, shapes, mesh, implementation=name)
            except jax.errors.JaxRuntimeError as error:
                yield row | {"failed": why(error)}
                continue
            row["temporary_mib"] = temporary(program) / MIB
            cost = program.cost_analysis() or {}
            if (
                name == "pallas_tpu" and mesh.size == 1
            ):  # the compiler counts the body of a loop once: no figure for the others
                row |= {"gflop": cost["flops"] / 1e9, "gbyte": cost["bytes accessed"] / 1e9}
                row["roofline_ms"] = 1e3 * chip(topology).roofline(
                    cost["flops"], cost["bytes accessed"]
                )
            yield row


def _kernels(topology: str) -> tuple[str, ...]:
    """Names of those that its chips can have."""
    gpu = parse_topology(topology).name
    if gpu not in GPUS:
        return ("pallas_tpu",)
    return ("pallas_triton",) if gpu == "b200" else ("pallas_hopper", "pallas_triton")


def scaling_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Bytes that each device receives, and what part of them while a kernel runs, as the batch
    grows with the topology."""
    for topology in args.scaling:
        mesh = data_mesh(compile_only_devices(topology))
        batch = args.per_device * mesh.size
        shapes = operands(batch, args.width, args.dtype, mesh)
        with jax.set_mesh(mesh):
            best = plan((batch, batch, args.width), args.dtype, kind=args.kind).collective
        for collective in args.collective:
            how = dict(implementation="pallas_tpu", collective=collective)
            program = compiled(args.kind, shapes, mesh, **how)
            found = collectives(read(program), mesh.size)
            received = sum(c.size * c.times for c in found)
            yield {
                "topology": topology,
                "devices": mesh.size,
                "batch": batch,
                "implementation": COLLECTIVES[collective],
                "chosen": "*" if collective == best else None,
                "messages": sum(c.times for c in found),
                "received_mib": received / MIB,
                "hidden": sum(c.size * c.times for c in found if c.kernels) / received,
                "temporary_mib": temporary(program) / MIB,
            }


# --------------------------------------------------------------------------------------------------


COLUMNS = {
    "topology": "{}",
    "devices": "{}",
    "batch": "{:,}",
    "implementation": "{}",
    "chosen": "{}",
    "seconds": "{:.4f}",
    "speed": "{:.2f} x",
    "tflop_per_second": "{:.2f}",
    "temporary_mib": "{:,.1f}",
    "messages": "{:,}",
    "received_mib": "{:,.1f}",
    "hidden": "{:.1%}",
    "gflop": "{:,.0f}",
    "gbyte": "{:,.2f}",
    "roofline_ms": "{:.2f}",
    "failed": "{}",
}


def table(rows: Sequence[dict[str, Json]], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    used = [c for c in COLUMNS if any(r.get(c) is not None for r in rows)]
    for column in used:
        out.add_column(
            column.replace("_", " ").replace("speed", "speed vs materialised"),
            justify="left" if column == "implementation" else "right",
        )
    for row in rows:
        out.add_row(*("" if row.get(c) is None else COLUMNS[c].format(row[c]) for c in used))
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Json]]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--memory", action="store_true", help="temporary bytes on simulated meshes")
    parser.add_argument(
        "--compile",
        type=lambda text: text.split(","),
        help="topologies, as v5e or v5e:4x4 (see jaxvl.sharding.topology)",
    )
    parser.add_argument(
        "--scaling",
        type=lambda text: text.split(","),
        help="topologies of TPUs of several devices",
    )
    parser.add_argument(
        "--batch", type=numbers, help="batch sizes (default 8192,16384; with --compile 65536)"
    )
    parser.add_argument("--width", type=int, help="D (default 512; with --compile 768)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default float32; with --compile bfloat16"
    )
    parser.add_argument("--kind", choices=["softmax", "sigmoid"], default="softmax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--devices", type=numbers, default=[8, 16, 32], help="mesh sizes of --memory"
    )
    parser.add_argument(
        "--per-device",
        type=int,
        help="rows per device of --memory (default 4096) and --scaling (default 128)",
    )
    parser.add_argument(
        "--collective",
        type=lambda text: text.split(","),
        default=list(COLLECTIVES),
        help="of --scaling: ring, gather, grid (default: all; * marks what the cost model chooses)",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    for name in args.collective:
        if name not in COLLECTIVES:
            parser.error(
                f"--collective: {name!r} is not valid; must be of {', '.join(COLLECTIVES)}"
            )
    args.batch = args.batch or ([65536] if args.compile else [8192, 16384])
    elsewhere = args.compile or args.scaling
    args.width = args.width or (768 if elsewhere else 512)
    args.dtype = jnp.dtype(args.dtype or ("bfloat16" if elsewhere else "float32"))
    args.per_device = args.per_device or (128 if args.scaling else 4096)
    if args.memory:
        # Too late where this process has used jax; then it needs as many devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", max(args.devices))
        if max(args.devices) > jax.device_count():
            parser.error(
                f"--devices: {max(args.devices)} is more than the {jax.device_count()} there are"
            )
    console = Console()
    measure = time_rows
    title = "time"
    if args.compile:
        measure = compile_rows
        title = "compiled for"
    elif args.scaling:
        measure = scaling_rows
        title = "compiled for more and more devices"
    elif args.memory:
        measure = memory_rows
        title = "on meshes"
    try:
        rows = list(measure(args))
    except ConfigError as error:
        parser.error(str(error))
    title = f"{args.kind} loss, forward and backward, D = {args.width}, {args.dtype}: {title}"
    publish(console, table(rows, title), {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
