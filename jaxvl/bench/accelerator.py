"""The first minutes on a GPU or TPU: are the kernels right there, and how fast is everything?

    python -m jaxvl.bench.accelerator --json=FILE                 # 8 minutes on one device
    python -m jaxvl.bench.accelerator --parts=numbers,core
    python -m jaxvl.bench.accelerator --tiny                      # all of it on a CPU, to see that it runs

Parts, in this order; after each row FILE is written anew, so that what was measured is kept:

    numbers     every kernel against float64
    core        the contrastive core, forward and backward, B 4,096 ... 65,536, D 512 and 768, against
                XLA's materialised form and (with inf-cl installed) Inf-CL's Triton kernel
    tiles       the fastest tiles of the kernels, written to --blocks for JAXVL_BLOCKS
    steps       step and MFU of CLIP ViT-B/16 and L/14, CoCa base, ALIGN B0, IMP-MoE base
    open_clip   the same CLIP models in open_clip, torch.compile and bfloat16
    attention   implementations of attention

A part that fails or runs out of its time leaves the others theirs; what this chip does not run is
skipped, and named. Exit status: 0, or 1 where a kernel is wrong, a part has failed, or a system, a
kernel or an implementation of one failed at every size.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.accelerator_parts import (
    attention,
    beside_open_clip,
    core,
    numbers,
    steps,
    tiles,
)
from jaxvl.bench.accelerator_parts.part import TINY, Deadline, Part, Row, Sizes
from jaxvl.bench.accelerator_parts.verdict import judge
from jaxvl.training.describe import describe_machine

# Part -> what it runs, and its share of the time.
PARTS: dict[str, tuple[Part, float]] = {
    "numbers": (numbers.run, 0.10),
    "core": (core.run, 0.25),
    "tiles": (tiles.run, 0.15),
    "steps": (steps.run, 0.25),
    "open_clip": (beside_open_clip.run, 0.20),
    "attention": (attention.run, 0.05),
}


def measure(
    parts: Sequence[str], sizes: Sizes, seconds: float, path: pathlib.Path | None, console: Console
) -> dict[str, Json]:
    """Runs the parts; what they found, by part. Time that one leaves is the others'."""
    result: dict[str, Json] = {"machine": describe_machine(), "parts": {}}
    whole = Deadline(seconds)
    shares = sum(PARTS[name][1] for name in parts)
    for name in parts:
        run, share = PARTS[name]
        deadline = Deadline(whole.left * share / shares)
        shares -= share
        began = time.perf_counter()
        rows: list[Row] = []
        found: dict[str, Json] = {"rows": rows}
        result["parts"][name] = found
        try:
            for row in run(sizes, deadline):
                rows.append(row)
                _write(path, result)
        except Exception as error:  # a fault of ours; the other parts are worth their minutes
            found["failed"] = "".join(traceback.format_exception(error))
        found["seconds"] = time.perf_counter() - began
        found["cut"] = deadline.left < 0
        _write(path, result)
        console.print(table(name, found))
    return result


def _write(path: pathlib.Path | None, result: dict[str, Json]) -> None:
    """Whole, or not at all: the machine may be taken away at any time."""
    if path is not None:
        beside = path.with_name(path.name + ".part")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        beside.replace(path)


def table(name: str, found: dict[str, Json]) -> Table:
    """The rows of a part."""
    cut = ", cut short" if found["cut"] else ""
    out = Table(title=f"{name}: {found['seconds']:.0f} s{cut}", title_justify="left")
    columns = list(dict.fromkeys(key for row in found["rows"] for key in row))
    for column in columns:
        out.add_column(column.replace("_", " "))
    for row in found["rows"]:
        out.add_row(*(_cell(row.get(column)) for column in columns))
    if "failed" in found:
        out.caption = found["failed"].strip().splitlines()[-1]
    return out


def _cell(value: Json) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tell(parts: dict[str, Json], console: Console) -> bool:
    """Prints what was skipped, what failed and what is wrong; returns whether nothing is wrong."""
    verdict = judge(parts)
    lines = [
        *(f"skipped: {line}" for line in verdict.skipped),
        *(f"failed at some sizes: {line}" for line in verdict.failed),
        *(f"WRONG: {line}" for line in verdict.wrong),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if "numbers" in parts and not judge({"numbers": parts["numbers"]}).wrong:
        console.print("all kernels agree with float64")
    return not verdict.wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--blocks", type=pathlib.Path, help="file for the fastest tiles")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts")
    parser.add_argument("--tiny", action="store_true", help="small sizes, kernels interpreted")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is not known; must be some of {', '.join(PARTS)}")
    console = Console()
    kind = jax.devices()[0].device_kind
    console.print(f"{kind}, jax {jax.__version__}")
    result = measure(parts, TINY if args.tiny else Sizes(), args.seconds, args.json, console)
    if args.blocks and "tiles" in result["parts"]:
        found = tiles.table(result["parts"]["tiles"]["rows"], kind)
        args.blocks.write_text(json.dumps(found, indent=1) + "\n")
        console.print(f"tiles: {args.blocks}; use them by JAXVL_BLOCKS={args.blocks}")
    return 0 if tell(result["parts"], console) else 1


if __name__ == "__main__":
    sys.exit(main())
