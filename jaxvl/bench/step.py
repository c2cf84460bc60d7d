"""One training step of CLIP ViT-B/32 in float32: forward, backward and AdamW.

    python -m jaxvl.bench.step                        # jaxvl alone
    python -m jaxvl.bench.step --peer open_clip       # beside OpenCLIP, each in its own process, in
                                                      turn

On a CPU, `export GLIBC_TUNABLES=glibc.malloc.hugetlb=1` first (as launch/local.sh does): large
arrays then lie in huge pages.

The peer needs (for a CPU build of torch):

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0 open_clip_torch timm
    pip install ftfy regex tqdm huggingface_hub safetensors pyyaml
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pathlib
import re
import resource
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from jaxvl.bench.harness import in_turn, isolated, publish, ratio
from jaxvl.config import choose
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.models import MODELS, InputSpec, presets
from jaxvl.models.functional import functional

VOCABULARY = 49408
LENGTH = 77
SIZE = 224


def jaxvl_step(batch: int, scan: bool) -> Callable[[], int]:
    """A function that takes one step and returns the peak of its process's memory, bytes."""
    node = presets.clip("B/32", activation="gelu")
    for side in ("image", "text"):
        node[side] |= dict(scan=scan)
    model = functional(
        choose(MODELS, node, "model"), InputSpec(SIZE, LENGTH, VOCABULARY, 0, VOCABULARY - 1)
    )
    tx = optax.adamw(1e-4, weight_decay=0.2)
    params, model_state = jax.jit(model.init)(jax.random.key(0))
    opt = jax.jit(tx.init)(params)
    image, text = (jnp.asarray(x) for x in inputs(batch))

    def step(params, opt):
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

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt).compile()
    held = [params, opt]

    def take() -> int:
        held[0], held[1], loss = compiled(*held)
        jax.block_until_ready(loss)
        return peak_memory()

    return take


def open_clip_step(batch: int, threads: int) -> Callable[[], int]:
    """The same in OpenCLIP."""
    import torch

    _register_torchvision(torch)
    import open_clip

    torch.set_num_threads(threads)
    model = open_clip.create_model("ViT-B-32")
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=["open_clip"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of one step that does not count and two that do, per library",
    )
    parser.add_argument("--scan", action="store_true", help="layers in a scan instead of unrolled")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args()
    with contextlib.ExitStack() as processes:
        takers = {"jaxvl": processes.enter_context(isolated(jaxvl_step, args.batch, args.scan))}
        if args.peer:
            takers[args.peer] = processes.enter_context(
                isolated(open_clip_step, args.batch, os.cpu_count())
            )
        seconds = in_turn(takers, args.rounds, calls=2, warm=1)
        peaks = {name: take() for name, take in takers.items()}
    table = Table(
        title=f"ViT-B/32 + text, batch {args.batch}, float32, {args.rounds} rounds in turn",
        title_justify="left",
    )
    for heading in ("", "median s", "min s", "max s", "examples/s", "peak GiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, s in seconds.items():
        median = statistics.median(s)
        figures = (median, min(s), max(s), args.batch / median, peaks[name] / 2**30)
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    console = Console()
    result = {"batch": args.batch, "seconds": seconds, "peak_bytes": peaks}
    if args.peer:
        middle, low, high = result["speed_relative_to_peer"] = ratio(seconds, "jaxvl", args.peer)
        table.caption = (
            f"jaxvl is {middle:.2f} x as fast as {args.peer} (median of the pairs; {low:.2f} … "
            f"{high:.2f})"
        )
    publish(console, table, result, args.json)


if __name__ == "__main__":
    main()
