"""Loss curves of a small CLIP whose linear maps are products of float32, bfloat16, int8 and fp8.

    python -m jaxvl.bench.quantize --steps=300 --json=FILE

The same weights to begin with, the same batches of generated pictures, one run after the other.
Only the products of the layers change (`nn.quantized`); with int8 and fp8 all else is bfloat16.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.config import resolve
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.experiment import Experiment
from jaxvl.training.setup import setup
from jaxvl.training.writer import Writer

TASK = "pairs"
KINDS = ("float32", "bfloat16", "int8", "fp8")


def small(kind: str, args: argparse.Namespace) -> Experiment:
    """A ViT and a text transformer on the generated shapes."""
    sizes = dict(width=args.width, depth=args.depth, heads=args.width // 32)
    layers = dict(sizes, quantize=kind if kind in ("int8", "fp8") else None)
    source = lambda split: dict(name="shapes", size=48, split=split)
    fields = dict(
        image=dict(name="picture", size=48),
        text=dict(name="caption", columns="name/en", length=12),
        group_id=dict(name="group", column="class_label"),
    )
    data = dict(source=source("train_b"), batch=args.batch, fields=fields)
    config = dict(
        model=dict(
            name="dual_encoder",
            image=dict(name="vit", variant="Ti/8", pool="mean", **layers),
            text=dict(name="text_transformer", variant="Ti", **layers),
            embed_dim=args.width,
        ),
        preprocess=dict(image_size=48),
        tokenizer=dict(kind="unigram", vocab_size=128),
        tasks={TASK: dict(data=data, objectives=dict(clip=dict(duplicates="positive")))},
        steps=args.steps,
        optim=dict(name="adamw", lr=1e-3, warmup=args.steps // 10, weight_decay=0.05, b2=0.98),
        evals=dict(zero_shot=dict(name="zero_shot", source=source("test_a"))),
        dtype="float32" if kind == "float32" else "bfloat16",
        log=dict(tensorboard=False, report=False),
    )
    return resolve(Experiment, config)


def run_of(kind: str, args: argparse.Namespace) -> dict[str, Json]:
    """Trains; returns the losses of all steps, the accuracy and the seconds of a step."""
    experiment = small(kind, args)
    mesh = make_mesh(experiment.mesh)
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        workdir = pathlib.Path(folder)
        with Writer(workdir, experiment.steps, tensorboard=False, console=quiet) as writer:
            run = setup(experiment, mesh, workdir, writer)
            state = run.take_state()
            losses = []
            began = time.perf_counter()
            for step in range(args.steps):
                turn = run.schedule(step)
                batch = run.feeds[TASK].take()
                state, (metrics,) = run.steps[turn](state, (batch,))
                losses.append(metrics["loss"])
            losses = [float(loss) for loss in losses]
            seconds = (time.perf_counter() - began) / args.steps
            found = experiment.evals["zero_shot"].run(run.encoders(state)).metrics
            run.close()
    return {"kind": kind, "losses": losses, "seconds": seconds, "accuracy": found["acc@1"]}


def table(rows: Sequence[dict[str, Json]], every: int, title: str) -> Table:
    """Losses as means of `every` steps."""
    out = Table(title=title, title_justify="left")
    out.add_column("steps", justify="right")
    for row in rows:
        out.add_column(row["kind"], justify="right")
    for first in range(0, len(rows[0]["losses"]), every):
        parts = [row["losses"][first : first + every] for row in rows]
        span = f"{first + 1} - {first + len(parts[0])}"
        out.add_row(span, *(f"{statistics.mean(part):.4f}" for part in parts))
    out.add_row("zero-shot acc@1, new styles", *(f"{row['accuracy']:.3f}" for row in rows))
    out.add_row("s a step", *(f"{row['seconds']:.3f}" for row in rows))
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Json]]:
    """Prints the table; returns (and, with --json, writes) its runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="steps of a row of the table")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=128, help="D, a multiple of 32")
    parser.add_argument("--depth", type=int, default=4, help="layers of each tower")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=KINDS)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    rows = [run_of(kind, args) for kind in args.kinds]
    title = f"CLIP, D = {args.width}, {args.depth} layers, batch {args.batch}: loss"
    publish(Console(width=120), table(rows, args.every, title), {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
