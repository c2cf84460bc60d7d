"""One training step of CLIP ViT-B/32 in float32: forward, backward and AdamW.

    python -m jaxvl.bench.step                        # jaxvl alone
    python -m jaxvl.bench.step --peer open_clip       # beside OpenCLIP, each in its own process, in
                                                      turn
    python -m jaxvl.bench.step --by-kind              # where jaxvl's time goes, from a profile

Both under each setting of glibc's allocator: with huge pages, as launch/local.sh sets it, and as it
is by default. The layers are scanned, as they are by default. Peak memory is of the whole process,
from its start on.

The peer needs (for a CPU build of torch):

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0 open_clip_torch timm
    pip install ftfy regex tqdm huggingface_hub safetensors pyyaml
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Compiled
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import in_turn, isolated, publish, ratio
from jaxvl.bench.kinds import Kind, table_of_kinds, time_by_kind
from jaxvl.config import choose
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.models import MODELS, InputSpec, presets
from jaxvl.models.functional import functional
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.training.compiler import compiler_options

VOCABULARY = 49408
LENGTH = 77
SIZE = 224
HUGE = "huge pages"
PLAIN = "glibc's default"
# Name -> GLIBC_TUNABLES of a process. Each library's own default is HUGE for jaxvl, PLAIN for a
# peer.
ALLOCATORS = {HUGE: "glibc.malloc.hugetlb=1", PLAIN: None}


def jaxvl_program(variant: str, batch: int, scan: bool) -> tuple[Compiled, Callable[[], jax.Array]]:
    """The compiled step, as a run compiles it, and a function that takes it and gives the loss."""
    node = presets.clip(variant, activation="gelu")
    for side in ("image", "text"):
        node[side] |= dict(scan=scan)
    model = functional(
        choose(MODELS, node, "model"), InputSpec(SIZE, LENGTH, VOCABULARY, 0, VOCABULARY - 1)
    )
    tx = optax.adamw(1e-4, weight_decay=0.2)
    params, model_state = jax.jit(model.init)(jax.random.key(0))
    opt = jax.jit(tx.init)(params)
    image, text = (jnp.asarray(x) for x in inputs(batch))

    def step(params, opt, image, text):
        def loss_of(params):
            out, _ = model.apply(
                params,
                model_state,
                {"image": image, "text": text},
                train=True,
                key=jax.random.key(0),
            )
            return contrastive_loss(out["image"], out["text"], out["log_scale"])

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt, image, text)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    compiled = lowered.compile(compiler_options=compiler_options("default", mesh) or None)
    held = [params, opt]

    def take() -> jax.Array:
        held[0], held[1], loss = compiled(*held, image, text)
        return loss

    return compiled, take


def jaxvl_step(variant: str, batch: int, scan: bool) -> Callable[[], int]:
    """A function that takes one step and returns the peak of its process's memory, bytes."""
    _, step = jaxvl_program(variant, batch, scan)

    def take() -> int:
        jax.block_until_ready(step())
        return peak_memory()

    return take


def jaxvl_kinds(variant: str, batch: int, scan: bool, steps: int) -> Callable[[], list[Kind]]:
    """A function that takes steps and returns where their time went."""
    compiled, step = jaxvl_program(variant, batch, scan)
    return lambda: time_by_kind(compiled, step, steps)


def open_clip_step(variant: str, batch: int, threads: int) -> Callable[[], int]:
    """The same in OpenCLIP."""
    import torch

    _register_torchvision(torch)
    import open_clip

    torch.set_num_threads(threads)
    model = open_clip.create_model("ViT-" + variant.replace("/", "-"))
    model.train()
    loss_of = open_clip.ClipLoss()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.2)
    image, text = inputs(batch)
    image = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    text = torch.from_numpy(text).long()

    def take() -> int:
        optimiser.zero_grad()
        loss = loss_of(*model(image, text))
        loss.backward()
        optimiser.step()
        loss.item()
        return peak_memory()

    return take


def peak_memory() -> int:
    """The most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _register_torchvision(torch) -> None:
    """Names torchvision's operators, which a torchvision built for another torch does not bring;
    nothing calls them."""
    library = torch.library.Library("torchvision", "DEF")
    source = (
        pathlib.Path(importlib.util.find_spec("torchvision").origin).parent
        / "_meta_registrations.py"
    )
    for name in set(re.findall(r'register_meta\("(\w+)"|torchvision::(\w+)', source.read_text())):
        library.define(f"{name[0] or name[1]}(Tensor a) -> Tensor")
    _register_torchvision.library = library  # its operators live as long as it does


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """image float32 [B, 224, 224, 3], text int32 [B, 77] with the end-of-text token last."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, VOCABULARY - 2, (batch, LENGTH), np.int32)
    text[:, -1] = VOCABULARY - 1
    return rng.standard_normal((batch, SIZE, SIZE, 3), np.float32), text


def compare(args: argparse.Namespace, allocator: str) -> dict[str, Json]:
    """Seconds and peaks of the libraries under one setting of the allocator."""
    environment = {"GLIBC_TUNABLES": ALLOCATORS[allocator]}
    makers = {"jaxvl": (jaxvl_step, args.variant, args.batch, not args.unrolled)}
    if args.peer:
        makers[args.peer] = (open_clip_step, args.variant, args.batch, os.cpu_count())
    with contextlib.ExitStack() as processes:
        takers = {
            name: processes.enter_context(isolated(*maker, environment=environment))
            for name, maker in makers.items()
        }
        seconds = in_turn(takers, args.rounds, warm=1)
        peaks = {name: take() for name, take in takers.items()}
    found = {"seconds": seconds, "peak_bytes": peaks}
    if args.peer:
        found["speed_relative_to_peer"] = ratio(seconds, "jaxvl", args.peer)
    return found


def own_defaults(found: Mapping[str, Mapping[str, Json]], peer: str) -> float:
    """How many times as fast as the peer jaxvl is by the medians, each at its own default."""
    ours = statistics.median(found[HUGE]["seconds"]["jaxvl"])
    return statistics.median(found[PLAIN]["seconds"][peer]) / ours


def table_of(found: Mapping[str, Mapping[str, Json]], title: str, batch: int) -> Table:
    """A row for each library under each setting."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "allocator", "median s", "min s", "max s", "examples/s", "peak GiB"):
        names = heading in ("", "allocator")
        table.add_column(heading, justify="left" if names else "right")
    for allocator, figures in found.items():
        for name, s in figures["seconds"].items():
            median = statistics.median(s)
            row = (median, min(s), max(s), batch / median, figures["peak_bytes"][name] / 2**30)
            table.add_row(name, allocator, *(f"{figure:.2f}" for figure in row))
    return table


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=["open_clip"])
    parser.add_argument("--variant", default="B/32", help="of CLIP: B/32, B/16, S/32, …")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="of one step that does not count and one that does, per library: the pairs",
    )
    parser.add_argument("--unrolled", action="store_true", help="layers not in a scan")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), help="one of the two alone")
    parser.add_argument(
        "--by-kind", action="store_true", help="time by kind of operation in place of all others"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the table; returns (and, with --json, writes) its figures."""
    args = arguments(argv)
    layers = "unrolled" if args.unrolled else "scanned"
    model = f"ViT-{args.variant} + text, batch {args.batch}, float32, layers {layers}"
    result = {"variant": args.variant, "batch": args.batch, "layers": layers}
    if args.by_kind:
        maker = (jaxvl_kinds, args.variant, args.batch, not args.unrolled, args.rounds)
        environment = {"GLIBC_TUNABLES": ALLOCATORS[args.allocator or HUGE]}
        with isolated(*maker, environment=environment) as take:
            kinds = take()
        table = table_of_kinds(kinds, f"{model}: a step's time by kind of operation")
        result["kinds"] = [dataclasses.asdict(kind) for kind in kinds]
        return publish(Console(), table, result, args.json)
    chosen = [args.allocator] if args.allocator else list(ALLOCATORS)
    found = {allocator: compare(args, allocator) for allocator in chosen}
    table = table_of(found, f"{model}, {args.rounds} rounds in turn", args.batch)
    result["allocators"] = found
    if args.peer:
        lines = []
        for allocator, figures in found.items():
            middle, low, high = figures["speed_relative_to_peer"]
            told = f"{middle:.2f} x as fast as {args.peer} ({low:.2f} … {high:.2f} in the pairs)"
            lines.append(f"{allocator}: jaxvl is {told}")
        if not args.allocator:
            own = result["speed_at_own_defaults"] = own_defaults(found, args.peer)
            lines.append(f"each at its own default (jaxvl: {HUGE}): {own:.2f} x, by the medians")
        table.caption = "\n".join(lines)
    return publish(Console(), table, result, args.json)


if __name__ == "__main__":
    main()
