"""Captions by CoCa's decoder with and without cached keys and values, in float32.

Greedy and by beam search.

    python -m jaxvl.bench.generate                                  # the paper's base width, 2 + 2 layers, 32 tokens
    python -m jaxvl.bench.generate --size emoji                     # the decoder of configs/coca_emoji.py

Every method writes captions of the full length from the same weights and pictures. `uncached` is
the decoder over the whole text for every token: the image is read once and only the logits that are
needed are computed, as in the cached loop. All methods run in turn in one process; ratios are of
pairs of one round. `programs` is how many were compiled for two pictures, two sets of weights and
two temperatures.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Arrays, Json
from jaxvl.bench.harness import in_turn, publish, ratio
from jaxvl.config import resolve
from jaxvl.models import InputSpec
from jaxvl.models.coca import CoCaConfig
from jaxvl.models.functional import Functional, functional
from jaxvl.models.generate import Generation, TextShape, generate

# Decoder, and words of its vocabulary.
SIZES = {
    "base": (
        dict(width=768, heads=12, hidden=3072, unimodal=2, multimodal=2, queries=64, tied=True),
        8000,
    ),
    "emoji": (
        dict(width=192, heads=4, hidden=512, unimodal=1, multimodal=2, queries=8, tied=True),
        6000,
    ),
    "tiny": (
        dict(width=32, heads=2, hidden=64, unimodal=1, multimodal=1, queries=4, tied=True),
        50,
    ),
}
IMAGE = dict(
    name="vit", variant="Ti/16", width=64, depth=1, heads=2, pool="mean"
)  # next to nothing: the decoder is measured
SIDE = 32
EOS = 1
PAD = 0


def build(size: str, length: int) -> Functional:
    decoder, words = SIZES[size]
    return functional(
        resolve(CoCaConfig, dict(image=IMAGE, **decoder)), InputSpec(SIDE, length, words, PAD, EOS)
    )


def cached(
    model: Functional, model_state: Arrays, batch: int, length: int
) -> Callable[..., jax.Array]:
    """`(params, image, generation, numbers, keys) -> tokens`, compiled per shape and
    `generation`."""

    @functools.partial(jax.jit, static_argnums=2)
    def write(params, image, generation, numbers, keys):
        apply = functools.partial(model.apply, params, model_state)
        (kv_cache, cross_kv), _ = apply(image, length, method="prefill")
        step = lambda kv_cache, *args: apply(kv_cache, cross_kv, *args, method="decode_step")[0]
        texts = TextShape(batch, length, EOS, PAD)
        return generate(step, kv_cache, generation, texts, keys=keys, numbers=numbers).tokens

    return write


def uncached(
    model: Functional, model_state: Arrays, batch: int, length: int
) -> Callable[..., jax.Array]:
    """`(params, image) -> tokens`: greedy, of the full length, nothing kept between tokens but the
    tokens."""

    @jax.jit
    def write(params, image):
        apply = functools.partial(model.apply, params, model_state)
        memory = apply(image, method="memory")[0][0]

        def extend(t, text):
            logits, _ = apply(image, text, memory=memory, position=t, method="caption_logits")
            token = jnp.arange(logits.shape[-1])
            never = (token == PAD) | (token == EOS) & (t < length - 1)
            new = jnp.where(t == length - 1, EOS, jnp.where(never, -jnp.inf, logits).argmax(-1))
            return text.at[:, t].set(new.astype(jnp.int32))

        # Words in the place of what is to come: it is not seen, and padding would be masked
        # besides.
        return lax.fori_loop(0, length, extend, jnp.full((batch, length), 2, jnp.int32))

    return write


def measure(size: str, batch: int, length: int, beams: int, rounds: int) -> dict[str, Json]:
    """Seconds by method, ratios to `uncached` and of beams to greedy, compiled programs, and
    whether both ways wrote the same."""
    model = build(size, length)
    params, model_state = jax.jit(model.init)(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (batch, SIDE, SIDE, 3))
    keys = jax.random.split(jax.random.key(2), batch)
    write = cached(model, model_state, batch, length)
    slow = uncached(model, model_state, batch, length)
    how = {
        "greedy": Generation(min_length=length),
        "sample": Generation(method="sample", min_length=length),
        f"beam {beams}": Generation(method="beam", beams=beams, min_length=length),
    }
    takers = {
        name: functools.partial(write, params, image, *g.split(), keys) for name, g in how.items()
    }
    takers["uncached"] = functools.partial(slow, params, image)
    seconds = in_turn(takers, rounds)
    for other in (
        Generation(method="sample", temperature=0.7),
        Generation(method="sample", temperature=1.3, min_length=2),
    ):
        write(jax.tree.map(lambda a: a + 0.01, params), image + 1, *other.split(), keys)
    same = np.mean(np.asarray(takers["greedy"]()) == np.asarray(takers["uncached"]()))
    return {
        "size": size,
        "parameters": sum(int(np.prod(s.shape)) for s in model.params.values()),
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "seconds": seconds,
        "cached_over_uncached": ratio(seconds, "greedy", "uncached"),
        "beam_cost": ratio(seconds, "greedy", f"beam {beams}"),
        "programs": {"three methods": write._cache_size()},
        "same_tokens": float(same),
    }


def main(argv: list[str] | None = None) -> dict[str, Json]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    result = measure(args.size, args.batch, args.length, args.beams, args.rounds)
    title = (
        f"CoCa decoder {args.size} ({result['parameters'] / 1e6:.1f} M parameters), batch "
        f"{args.batch}, {args.length} tokens"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "median s", "min s", "max s", "tokens/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, s in result["seconds"].items():
        median = statistics.median(s)
        table.add_row(
            name,
            f"{median:.3f}",
            f"{min(s):.3f}",
            f"{max(s):.3f}",
            f"{args.batch * args.length / median:,.0f}",
        )
    middle, low, high = result["cached_over_uncached"]
    cost = result["beam_cost"][0]
    table.caption = (
        f"greedy with kept keys and values is {middle:.1f} x as fast as without (median of "
        f"the pairs; {low:.1f} … {high:.1f}); "
        f"{args.beams} beams cost {cost:.1f} x greedy; "
        f"{result['programs']['three methods']} programs for three methods; "
        f"{100 * result['same_tokens']:.1f} % of tokens equal"
    )
    return publish(Console(), table, result, args.json)


if __name__ == "__main__":
    main()
