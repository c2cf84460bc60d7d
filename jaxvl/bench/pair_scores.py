"""Streamed scores of pairs: time of forward and backward, and temporary bytes.

    python -m jaxvl.bench.pair_scores                            # dot, late interaction, weighted clips
    python -m jaxvl.bench.pair_scores --batch 1024,4096 --score dot --reduce hinge
    python -m jaxvl.bench.pair_scores --block 64,256

Each score and reduction is computed in three ways, in turn:

    streamed     `streamed_scores`
    dense        the whole matrix of scores, and the reduction as one writes it, by autodiff
    fused        `contrastive_loss`, for the cross-entropy of dot products alone
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json, Tree
from jaxvl.bench.harness import in_turn, publish, ratio
from jaxvl.kernels.contrastive import contrastive_loss, streamed_scores
from jaxvl.kernels.contrastive.generic import Reduction, Score, both
from jaxvl.kernels.contrastive.reductions import CrossEntropy, Hinge, ReverseKL
from jaxvl.kernels.contrastive.scores import AttentionWeighted, Dot, LateInteraction, Tokens

MIB = 2**20
TOKENS = (8, 6)  # of each row and of each column
BLOCKS = {"dot": 512, "late": 64, "clips": 256}  # largest block of each score, unless --block
SCORES = {"dot": Dot, "late": LateInteraction, "clips": AttentionWeighted}
REDUCTIONS = {"softmax": CrossEntropy(), "kl": ReverseKL(), "hinge": Hinge()}


def operands(name: str, batch: int, width: int) -> tuple[Tree, Tree]:
    """Rows and columns that the score `name` takes."""
    rng = np.random.default_rng(0)

    def unit(*shape: int) -> jax.Array:
        x = rng.standard_normal(shape, np.float32)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    u = unit(batch, width) if name == "dot" else Tokens(unit(batch, TOKENS[0], width))
    v = Tokens(unit(batch, TOKENS[1], width)) if name == "late" else unit(batch, width)
    return u, v


def dense(score: Score, u: Tree, v: Tree, reduction: str) -> jax.Array:
    """Sum of both directions' means, from `[B, B]` scores."""
    total = jnp.float32(0)
    rows, cols = both(score(u, v))
    for s in (rows, cols.T):
        own = jnp.diag(s)
        log_p = jax.nn.log_softmax(s)
        if reduction == "softmax":
            each = -jnp.diag(log_p)
        elif reduction == "kl":
            each = jnp.sum(jnp.exp(log_p) * (log_p - jnp.log(jnp.eye(len(s)) + 1e-8)), 1)
        else:
            near = jax.nn.relu(0.2 + s - own[:, None])
            each = jnp.sum(near * (1 - jnp.eye(len(s))), 1)
        total += jnp.mean(each)
    return total


def ways(name: str, reduction: str, block: int) -> dict[str, Callable]:
    """Way -> jitted `(u, v, scale) -> loss and gradients`."""

    def streamed(u: Tree, v: Tree, scale: jax.Array) -> jax.Array:
        reduce: Reduction = REDUCTIONS[reduction]
        return streamed_scores(SCORES[name](scale), u, v, reduce, block).loss("sum")

    def whole(u: Tree, v: Tree, scale: jax.Array) -> jax.Array:
        return dense(SCORES[name](scale), u, v, reduction)

    def fused(u: Tree, v: Tree, scale: jax.Array) -> jax.Array:
        return contrastive_loss(u, v, jnp.log(scale), directions="sum")

    found = dict(streamed=streamed, dense=whole)
    if (name, reduction) == ("dot", "softmax"):
        found["fused"] = fused
    return {way: jax.jit(jax.value_and_grad(loss, (0, 1, 2))) for way, loss in found.items()}


def measured(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Median seconds and temporary bytes of each way, for each score, reduction, batch, block."""
    for name in args.score:
        for batch in args.batch:
            u, v = operands(name, batch, args.width)
            for block in args.block or [BLOCKS[name]]:
                yield from _of_ways(args, name, batch, block, (u, v, jnp.float32(14.0)))


def _of_ways(
    args: argparse.Namespace, name: str, batch: int, block: int, inputs: tuple
) -> Iterator[dict[str, Json]]:
    for reduction in args.reduce:
        takers = {}
        memory = {}
        losses = {}
        for way, step in ways(name, reduction, block).items():
            program = step.lower(*inputs).compile()
            losses[way] = float(program(*inputs)[0])
            takers[way] = functools.partial(program, *inputs)
            memory[way] = program.memory_analysis().temp_size_in_bytes
        seconds = in_turn(takers, args.rounds)
        for way in takers:
            yield {
                "score": name,
                "reduction": reduction,
                "batch": batch,
                "block": block if way == "streamed" else None,
                "way": way,
                "loss": losses[way],
                "seconds": statistics.median(seconds[way]),
                "all_seconds": seconds[way],
                "speed": ratio(seconds, way, "dense")[0],
                "temporary_mib": memory[way] / MIB,
            }


COLUMNS = {
    "score": "{}",
    "reduction": "{}",
    "batch": "{:,}",
    "block": "{}",
    "way": "{}",
    "loss": "{:.5f}",
    "seconds": "{:.4f}",
    "speed": "{:.2f} x",
    "temporary_mib": "{:,.1f}",
}


def table(rows: Sequence[dict[str, Json]], width: int) -> Table:
    title = f"forward and backward, D = {width}, float32; speed against dense"
    out = Table(title=title, title_justify="left")
    for column in COLUMNS:
        out.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        cells = ("" if row[c] is None else COLUMNS[c].format(row[c]) for c in COLUMNS)
        out.add_row(*cells)
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Json]]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def names(known: dict[str, Json]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            unknown = set(text.split(",")) - set(known)
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown} not among {', '.join(known)}")
            return text.split(",")

        return parse

    parser.add_argument("--score", type=names(SCORES), default=list(SCORES))
    parser.add_argument("--reduce", type=names(REDUCTIONS), default=["softmax"])
    parser.add_argument("--batch", type=numbers, default=[256, 1024])
    parser.add_argument("--block", type=numbers, help="sizes of blocks to try")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    rows = list(measured(args))
    publish(Console(), table(rows, args.width), {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
