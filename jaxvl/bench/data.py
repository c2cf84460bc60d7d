"""How fast records become batches on the mesh, part by part.

    python -m jaxvl.bench.data                                  # emoji, as the demo reads them
    python -m jaxvl.bench.data --source shapes --json out.json  # no download

`images/s per core` counts the processor time of this process, all its threads, so it is a property of the code and
holds on a busy machine too; `images/s` is by the clock. "Cold" reads and decodes, "warm" finds decoded pictures in
memory (from the second epoch on, where the records fit `reader.cache_mb`).
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
from jaxvl.config import choose, resolve
from jaxvl.data.augment import Augment, augment
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig
from jaxvl.data.feed import Feed
from jaxvl.data.fields import caption as captions_of
from jaxvl.data.pictures import open_picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source
from jaxvl.data.text_sample import sample_texts
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.sharding import make_mesh
from jaxvl.training.inputs import text_columns

# Weights of the columns of texts that the source has.
WEIGHTS = {"name/en": 0.7, "keywords/en": 0.15} | {f"name/{language}": 0.03 for language in ("de", "es", "fr", "it", "pt")}
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


def host_parts(config: DataConfig, source: Source, tokenizer: Tokenizer, n: int) -> list[Figure]:
    """Each step from a record to a row on its own, in one thread, over `n` records spread over the source."""
    picture, caption = config.fields["image"], config.fields["text"]
    index = np.linspace(0, len(source) - 1, n).astype(int).tolist()
    figures, records = [], []
    figures.append(measure("read and unpack a record", n, lambda: records.extend(source[i] for i in index)))
    figures.append(measure("decode at its stored size", n, lambda: [np.asarray(open_picture(r["image"])) for r in records]))
    preprocess = Preprocess(picture.size)
    for how, fast in (("", False), (", fast_decode", True)):
        work = lambda fast=fast: [preprocess.decode(r["image"], fast=fast) for r in records]
        figures.append(measure(f"decode and scale to {picture.size} px{how}", n, work))
    groups = [[(weight, captions_of.texts_of(record, columns)) for columns, weight in caption.matched(source)] for record in records]
    texts = [tuple(group for group in of if group[1]) for of in groups]
    draws = np.random.default_rng(0).random((n, captions_of.DRAWS)).tolist()
    captions: list[str] = []
    choices = lambda: captions.extend(captions_of.choose(of, caption.joined, numbers) for of, numbers in zip(texts, draws) if of)
    figures.append(measure("choose a caption", n, choices))
    figures.append(measure("tokenise a caption", n, lambda: tokenizer.encode(captions, caption.length)))
    return figures


def whole_feed(config: DataConfig, source: Source, tokenizer: Tokenizer) -> list[Figure]:
    """Batches in this thread, then through the feed onto the mesh: cold (one epoch) and warm (the next two)."""
    epoch = max(1, len(source) // config.batch)
    batches = Batches(config, source, tokenizer, seed=0)
    run = lambda first, last: [batches[i] for i in range(first, last)] and None
    figures = [
        measure("batch, cold", epoch * config.batch, lambda: run(0, epoch)),
        measure("batch, warm", 2 * epoch * config.batch, lambda: run(epoch, 3 * epoch)),
    ]
    batches.close()
    feed = Feed(config, source, tokenizer, seed=0, mesh=make_mesh())
    try:
        take = lambda n: [jax.block_until_ready(next(feed)) for _ in range(n)] and None
        figures.append(measure("feed onto the mesh, cold", epoch * config.batch, lambda: take(epoch)))
        figures.append(measure("feed onto the mesh, warm", 2 * epoch * config.batch, lambda: take(2 * epoch)))
    finally:
        feed.close()
    return figures


def device_parts(config: DataConfig, repeats: int) -> list[Figure]:
    """Augmentation, compiled, per `AUGMENTATIONS` entry."""
    shape = config.shapes["image"].shape
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
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
    parser.add_argument("--source", default="emoji", choices=("emoji", "shapes", "stamps"), help="which records")
    parser.add_argument("--split", default="train_a", help="which of its splits")
    parser.add_argument("--image-size", type=int, default=64, help="side of the pictures of a batch, pixels")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument("--text-length", type=int, default=16, help="tokens of a row")
    parser.add_argument("--records", type=int, default=1000, help="records for the parts on their own")
    parser.add_argument("--repeats", type=int, default=10, help="batches for each augmentation")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)

    console = Console()
    source = choose(SOURCES, dict(name=args.source, split=args.split), "source").open(log=console.print)
    columns = {name: weight for name, weight in WEIGHTS.items() if name in source.columns}
    fields = dict(
        image=dict(name="picture", size=args.image_size),
        text=dict(name="caption", columns=columns, length=args.text_length),
    )
    config = resolve(DataConfig, dict(source=dict(name=args.source, split=args.split), batch=args.batch, fields=fields))
    texts = list(sample_texts(source, text_columns(config, source), TokenizerConfig().sample, seed=0))
    trained: list[Tokenizer] = []
    size = 8000 if args.source == "emoji" else 256
    training = measure(
        "train the vocabulary (texts)", len(texts), lambda: trained.append(make_tokenizer(TokenizerConfig(vocab_size=size), texts))
    )
    n = min(args.records, len(source))
    figures = [
        training,
        *host_parts(config, source, trained[0], n),
        *whole_feed(config, source, trained[0]),
        *device_parts(config, args.repeats),
    ]

    out = {
        "arguments": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()},
        "figures": [f.row for f in figures],
    }
    title = f"{args.source}/{args.split}, batch {args.batch}, {args.image_size} px, {args.text_length} tokens"
    return publish(console, table(figures, title), out, args.json)


if __name__ == "__main__":
    main()
