"""MoE layers beside a dense MLP of equal active FLOP: routers x forms of dispatch.

    python -m jaxvl.bench.moe                        # time on this machine, all in turn
    python -m jaxvl.bench.moe --compile v5e,v6e      # FLOP, bytes and roofline on accelerators that
                                                     are not here

Every layer runs as many rows through perceptrons as there are tokens: `token_choice` with 2 experts
per token has experts of half the hidden width and capacity factor 1, `soft` as many slots as
tokens, `skills` two active of half the width.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json, Tree
from jaxvl.bench.harness import in_turn, publish, ratio
from jaxvl.config import ConfigError
from jaxvl.nn.mlp import Mlp, MlpOptions
from jaxvl.nn.moe import ExpertChoice, MoeConfig, MoeOutput, SkillMoe, Skills, Soft, TokenChoice
from jaxvl.sharding.topology import chip, compile_only_devices

MIB = 2**20


def layers(args: argparse.Namespace) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
    """Name -> constructor; `dense` first."""
    perceptron = MlpOptions(activation="gelu_tanh", bias=False)
    options = dict(options=perceptron, dtype=args.dtype)
    group = min(args.group, args.tokens)
    one = TokenChoice(capacity_factor=1.0)
    two = TokenChoice(top=2, capacity_factor=1.0)
    names = tuple(f"s{i}" for i in range(args.experts))
    cases = {f"expert_choice/{form}": (ExpertChoice(), form, 1) for form in ("gather", "einsum")}
    cases |= {f"token_choice 1/{form}": (one, form, 1) for form in ("gather", "einsum", "ragged")}
    cases |= {f"token_choice 2/{form}": (two, form, 2) for form in ("gather", "einsum", "ragged")}
    cases |= {
        "soft/einsum": (Soft(group // args.experts), "gather", 1),
        "skills": (Skills(names), "gather", 2),
    }

    def moe(router: Any, form: str, share: int) -> Callable[[nnx.Rngs], nnx.Module]:
        config = MoeConfig(
            router=router, experts=args.experts, last=1, dispatch=form, group_size=group
        )
        return lambda rngs: config.build(args.width, args.hidden // share, rngs=rngs, **options)

    dense = {"dense": lambda rngs: Mlp(args.width, args.hidden, rngs=rngs, **options)}
    wanted = {
        name: moe(*case)
        for name, case in cases.items()
        if not args.only or any(o in name for o in args.only)
    }
    return dense | wanted


def step_of(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable[..., Tree], nnx.State]:
    """`(params, x) -> loss and gradients`, not jitted, and the shapes of its parameters."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))), nnx.Param)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, params)
        skills = dict(skills=("s0", "s1")) if isinstance(layer, SkillMoe) else {}
        out = layer(x, train=True, **skills)
        y, extra = (
            (out.y, sum(out.losses.values(), 0.0)) if isinstance(out, MoeOutput) else (out, 0.0)
        )
        return jnp.square(y.astype(jnp.float32)).sum() + 0.01 * extra

    return jax.value_and_grad(loss, (0, 1)), params


def time_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """Median seconds of each layer, and how many times the dense one's they are (median, lowest and
    highest of the rounds)."""
    x = jnp.asarray(
        np.random.default_rng(0).standard_normal((args.rows, args.tokens // args.rows, args.width)),
        args.dtype,
    )
    takers = {}
    memory = {}
    for name, make in layers(args).items():
        step, _ = step_of(make)
        params = nnx.split(make(nnx.Rngs(params=0)), nnx.Param)[1]
        program = jax.jit(step).lower(params, x).compile()
        takers[name] = functools.partial(program, params, x)
        memory[name] = program.memory_analysis().temp_size_in_bytes
    seconds = in_turn(takers, args.rounds)
    for name in takers:
        slower = [1 / r for r in ratio(seconds, name, "dense")]
        yield {
            "layer": name,
            "seconds": statistics.median(seconds[name]),
            "overhead": slower[0],
            "lowest": slower[2],
            "highest": slower[1],
            "temporary_mib": memory[name] / MIB,
            "all_seconds": seconds[name],
        }


def compile_rows(args: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """FLOP, bytes and roofline of each layer on one device of each topology, as its compiler has
    it."""
    for topology in args.compile:
        mesh = Mesh(np.array(compile_only_devices(topology)[:1]), ("data",))
        here = NamedSharding(mesh, PartitionSpec())
        place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here)  # noqa: B023
        x = place(
            jax.ShapeDtypeStruct((args.rows, args.tokens // args.rows, args.width), args.dtype)
        )
        for name, make in layers(args).items():
            row = {"topology": topology, "layer": name}
            step, params = step_of(make)
            try:
                program = jax.jit(step).lower(jax.tree.map(place, params), x).compile()
            except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
                yield row | {"failed": str(error).splitlines()[0][:60]}
                continue
            cost = program.cost_analysis()
            roof = chip(topology).roofline(cost["flops"], cost["bytes accessed"])
            memory = program.memory_analysis().temp_size_in_bytes / MIB
            yield row | {
                "gflop": cost["flops"] / 1e9,
                "gbyte": cost["bytes accessed"] / 1e9,
                "roofline_ms": 1e3 * roof,
                "temporary_mib": memory,
            }


COLUMNS = {
    "topology": "{}",
    "layer": "{}",
    "seconds": "{:.3f}",
    "overhead": "{:.2f} x",
    "lowest": "{:.2f}",
    "highest": "{:.2f}",
    "gflop": "{:,.1f}",
    "gbyte": "{:,.3f}",
    "roofline_ms": "{:.3f}",
    "temporary_mib": "{:,.1f}",
    "failed": "{}",
}


def table(rows: Sequence[dict[str, Json]], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    used = [c for c in COLUMNS if any(r.get(c) is not None for r in rows)]
    for column in used:
        out.add_column(column.replace("_", " "), justify="left" if column == "layer" else "right")
    for row in rows:
        out.add_row(*("" if row.get(c) is None else COLUMNS[c].format(row[c]) for c in used))
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Json]]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: text.split(",")
    parser.add_argument(
        "--compile", type=names, help="topologies, as v5e or v6e (see jaxvl.sharding.topology)"
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=16, help="examples that the tokens are of")
    parser.add_argument("--group", type=int, default=2048, help="tokens of a group")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--width", type=int, default=512, help="D")
    parser.add_argument("--hidden", type=int, default=2048, help="F")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default float32; with --compile bfloat16"
    )
    parser.add_argument(
        "--only", type=names, default=[], help="layers whose names hold one of these"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    args.dtype = jnp.dtype(args.dtype or ("bfloat16" if args.compile else "float32"))
    try:
        rows = list(compile_rows(args) if args.compile else time_rows(args))
    except ConfigError as error:
        parser.error(str(error))
    title = (
        f"{args.tokens:,} tokens, E = {args.experts}, D = {args.width}, F = {args.hidden}, "
        f"{args.dtype}, forward and backward"
    )
    publish(Console(width=140), table(rows, title), {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
