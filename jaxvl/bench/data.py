"""How fast records become batches on the mesh, part by part.

    python -m jaxvl.bench.data                                  # the emoji corpus, as the demo reads it
    python -m jaxvl.bench.data --corpus shapes --json out.json  # no download

`images/s per core` counts the processor time of this process, all its threads, so it is a property of the code and
holds on a busy machine too; `images/s` is by the clock. "Cold" reads and decodes, "warm" finds decoded pictures in
memory (from the second epoch on, where the corpus fits `cache_mb`).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxvl.bench.harness import publish
from jaxvl.config import choose
from jaxvl.data.augment import Augment, augment
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora import CORPORA
from jaxvl.data.feed import Feed
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.pictures import open_picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.sharding import make_mesh

FOREIGN = ("de", "es", "fr", "it", "pt")
# What the device does to a batch: nothing, what photos get, and all that changes a drawing's style.
AUGMENTATIONS = {
    "background only": Augment(),
    "photo (SimCLR)": Augment(flip=0.5, hue=25.0, saturation=(0.2, 1.8), grayscale=0.2, contrast=0.4, brightness=0.2, blur=0.5),
    "drawing style": Augment(
        rotate=12.0, zoom=(0.7, 1.25), stretch=0.25, shear=0.12, shift=0.06, hue=20.0, saturation=(0.3, 1.6), grayscale=0.12, contrast=0.25,
        brightness=0.12, tint=0.05, posterise=0.25, outline=0.5, line_drawing=0.1, invert=0.03, background=0.5,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measurement of `images` pictures (or texts)."""

    part: str
    images: int
    seconds: float
    core_seconds: float

    @property
    def row(self) -> dict[str, Any]:
        return {
            "part": self.part, "images": self.images, "images_per_second": self.images / self.seconds,
            "images_per_second_per_core": self.images / self.core_seconds, "core_us_per_image": 1e6 * self.core_seconds / self.images,
        }  # fmt: skip


def measure(part: str, images: int, work: Callable[[], Any]) -> Figure:
    """Runs `work` once."""
    wall, core = time.perf_counter(), time.process_time()
    work()
    return Figure(part, images, max(time.perf_counter() - wall, 1e-9), max(time.process_time() - core, 1e-9))


def host_parts(config: DataConfig, corpus: Any, tokenizer: Tokenizer, n: int) -> list[Figure]:
    """Each step from a record to a row on its own, in one thread, over `n` records spread over the split."""
    source = corpus.split(config.split)
    index = np.linspace(0, len(source) - 1, n).astype(int).tolist()
    figures, records = [], []
    figures.append(measure("read and unpack a record", n, lambda: records.extend(source[i] for i in index)))
    figures.append(measure("decode at its stored size", n, lambda: [np.asarray(open_picture(r["image"])) for r in records]))
    preprocess = Preprocess(config.image_size)
    for how, fast in (("", False), (", fast_decode", True)):
        work = lambda fast=fast: [preprocess.decode(r["image"], fast=fast) for r in records]
        figures.append(measure(f"decode and scale to {config.image_size} px{how}", n, work))
    texts = [config.captions.texts(r) for r in records]
    draws = np.random.default_rng(0).random((n, 14))
    captions: list[str] = []
    figures.append(
        measure("choose a caption", n, lambda: captions.extend(config.captions.choose(t, d) for t, d in zip(texts, draws.tolist())))
    )
    figures.append(measure("tokenise a caption", n, lambda: tokenizer.encode(captions, config.text_length)))
    return figures


def whole_feed(config: DataConfig, corpus: Any, tokenizer: Tokenizer) -> list[Figure]:
    """Batches in this thread, then through the feed onto the mesh: cold (one epoch) and warm (the next two)."""
    source = corpus.split(config.split)
    epoch = max(1, len(source) // config.batch)
    batches = Batches(config, source, tokenizer, seed=0)
    run = lambda first, last: [batches[i] for i in range(first, last)] and None
    figures = [
        measure("batch, cold", epoch * config.batch, lambda: run(0, epoch)),
        measure("batch, warm", 2 * epoch * config.batch, lambda: run(epoch, 3 * epoch)),
    ]
    feed = Feed(config, corpus, tokenizer, seed=0, mesh=make_mesh())
    try:
        take = lambda n: [jax.block_until_ready(next(feed)) for _ in range(n)] and None
        figures.append(measure("feed onto the mesh, cold", epoch * config.batch, lambda: take(epoch)))
        figures.append(measure("feed onto the mesh, warm", 2 * epoch * config.batch, lambda: take(2 * epoch)))
    finally:
        feed.close()
    return figures


def device_parts(config: DataConfig, repeats: int) -> list[Figure]:
    """Augmentation, compiled, per `AUGMENTATIONS` entry."""
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, (config.batch, config.image_size, config.image_size, 4), np.uint8))
    keys = jax.random.split(jax.random.key(0), config.batch)
    figures = []
    for name, how in AUGMENTATIONS.items():
        step = jax.jit(lambda x, k, how=how: augment(x, k, how))
        jax.block_until_ready(step(images, keys))
        work = lambda step=step: [jax.block_until_ready(step(images, keys)) for _ in range(repeats)] and None
        figures.append(measure(f"augment on the device: {name}", repeats * config.batch, work))
    return figures


def table(figures: Sequence[Figure], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    for heading, side in (("part", "left"), ("images/s", "right"), ("images/s per core", "right"), ("µs of a core per image", "right")):
        out.add_column(heading, justify=side)
    for row in (f.row for f in figures):
        out.add_row(
            row["part"], f"{row['images_per_second']:,.0f}", f"{row['images_per_second_per_core']:,.0f}", f"{row['core_us_per_image']:,.1f}"
        )
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints the table; returns (and, with --json, writes) the figures and the machine."""
    parser = argparse.ArgumentParser(prog="python -m jaxvl.bench.data", description="Speed of the data pipeline, part by part.")
    parser.add_argument("--corpus", default="emoji", choices=list(CORPORA), help="which corpus")
    parser.add_argument("--split", default="train_a", help="which of its splits")
    parser.add_argument("--image-size", type=int, default=64, help="side of the pictures of a batch, pixels")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument("--text-length", type=int, default=16, help="tokens of a row")
    parser.add_argument("--records", type=int, default=1000, help="records for the parts on their own")
    parser.add_argument("--repeats", type=int, default=10, help="batches for each augmentation")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)

    console = Console()
    captions = CaptionConfig(name=0.7, keyword=0.15, foreign=0.15, foreign_locales=FOREIGN)
    corpus_config = choose(CORPORA, args.corpus, "corpus")
    config = DataConfig(corpus_config, args.split, args.batch, args.image_size, args.text_length, captions=captions)
    corpus = corpus_config.prepare(log=console.print)
    texts = list(corpus.texts(args.split, captions.locales))
    trained: list[Tokenizer] = []
    size = 8000 if args.corpus == "emoji" else 256
    training = measure(
        "train the vocabulary (texts)", len(texts), lambda: trained.append(make_tokenizer(TokenizerConfig(vocab_size=size), texts))
    )
    n = min(args.records, len(corpus.split(args.split)))
    figures = [
        training,
        *host_parts(config, corpus, trained[0], n),
        *whole_feed(config, corpus, trained[0]),
        *device_parts(config, args.repeats),
    ]

    out = {
        "arguments": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()},
        "figures": [f.row for f in figures],
    }
    title = f"{args.corpus}/{args.split}, batch {args.batch}, {args.image_size} px, {args.text_length} tokens"
    return publish(console, table(figures, title), out, args.json)


if __name__ == "__main__":
    main()
