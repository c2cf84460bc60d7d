"""Seconds to trace and to compile a tower whose layers are scanned, beside the same one unrolled,
forward and backward.

    python -m jaxvl.bench.compile                       # for this machine
    python -m jaxvl.bench.compile --topology v5e,v6e    # for accelerators that are not here

The two in turn; nothing is read from a cache. Shares are of the unrolled one's: of its seconds, and
of its processors' seconds ("CPU"), which other processes of the machine change little. Instructions
are those of the optimised program.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.config import ConfigError
from jaxvl.nn.stack import Remat
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.sharding.topology import compile_only_devices

HERE = "here"


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Programs are compiled anew inside, and not written."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def seconds_of(scan: bool, args: argparse.Namespace, device: jax.Device) -> dict[str, float]:
    """Of one tower: seconds of tracing (to StableHLO) and of compiling, seconds of processors for
    both, instructions."""
    sizes = Sizes(args.width, args.layers, args.heads, 4 * args.width)
    options = StackOptions(scan=scan, remat=args.remat)
    dtype = jnp.dtype(args.dtype)
    make = lambda: Transformer(sizes, options, rngs=nnx.Rngs(0), dtype=dtype)
    graphdef, params = nnx.split(nnx.eval_shape(make))
    place = NamedSharding(Mesh(np.array([device]), ("data",)), PartitionSpec())
    there = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    x = jax.ShapeDtypeStruct((args.rows, args.tokens, args.width), dtype, sharding=place)

    def loss(params, x):
        return jnp.mean(nnx.merge(graphdef, params)(x).astype(jnp.float32) ** 2)

    jax.clear_caches()
    spent = time.process_time()
    began = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(loss)).lower(jax.tree.map(there, params), x)
    traced = time.perf_counter()
    with nothing_kept():
        compiled = lowered.compile()
    ended = time.perf_counter()
    return {
        "trace_seconds": traced - began,
        "compile_seconds": ended - traced,
        "processor_seconds": time.process_time() - spent,
        "instructions": float(compiled.as_text().count(" = ")),
    }


def rows_of(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """For each topology the scanned and the unrolled tower, medians of the rounds."""
    for topology in args.topology or [HERE]:
        device = (jax.devices() if topology == HERE else compile_only_devices(topology))[0]
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for _ in range(args.rounds):
            for scan in found:
                found[scan].append(seconds_of(scan, args, device))
        medians = {
            scan: {key: statistics.median(f[key] for f in figures) for key in figures[0]}
            for scan, figures in found.items()
        }
        totals = {s: m["trace_seconds"] + m["compile_seconds"] for s, m in medians.items()}
        for scan, figures in medians.items():
            yield {
                "target": topology,
                "layers": "scanned" if scan else "unrolled",
                **figures,
                "seconds": totals[scan],
                "share": totals[scan] / totals[False],
                "processor_share": figures["processor_seconds"]
                / medians[False]["processor_seconds"],
            }


# Key of a row -> its heading and form.
COLUMNS = {
    "target": ("target", "{}"),
    "layers": ("layers", "{}"),
    "trace_seconds": ("trace, s", "{:.2f}"),
    "compile_seconds": ("compile, s", "{:.2f}"),
    "seconds": ("both", "{:.2f}"),
    "share": ("share", "{:.3f}"),
    "processor_seconds": ("CPU, s", "{:.2f}"),
    "processor_share": ("share", "{:.3f}"),
    "instructions": ("instructions", "{:,.0f}"),
}


def table(rows: Sequence[dict[str, Json]], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    for column, (heading, _) in COLUMNS.items():
        names = column in ("target", "layers")
        out.add_column(heading, justify="left" if names else "right")
    for row in rows:
        out.add_row(*(form.format(row[column]) for column, (_, form) in COLUMNS.items()))
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Json]]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", type=lambda text: text.split(","), help="as v5e or v6e")
    parser.add_argument("--layers", type=int, default=24, help="L")
    parser.add_argument("--width", type=int, default=1024, help="D; F is four times as much")
    parser.add_argument("--heads", type=int, default=16, help="H")
    parser.add_argument("--rows", type=int, default=8, help="B")
    parser.add_argument("--tokens", type=int, default=256, help="T")
    parser.add_argument("--remat", default="none", choices=get_args(Remat))
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    try:
        rows = list(rows_of(args))
    except ConfigError as error:
        parser.error(str(error))
    title = (
        f"{args.layers} layers, D = {args.width}, {args.rows} x {args.tokens} tokens, "
        f"{args.dtype}, remat {args.remat}: forward and backward"
    )
    publish(Console(), table(rows, title), {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
