"""How fast records become batches on the mesh, part by part.

    python -m jaxvl.bench.data                                                            # the emoji demo data
    python -m jaxvl.bench.data --source=shapes --source.split=train_a --json=out.json     # no download
    python -m jaxvl.bench.data --source=webdataset --source.files='data/*.tar' --text=txt  # your own

`images/s per core` counts the processor time of this process, all its threads, so it is a property
of the code and holds on a busy machine too; `images/s` is by the clock. "Cold" reads and decodes,
"warm" finds decoded pictures in memory (from the second epoch on, where the data fits `cache_mb`).
The last lines say which stage the feed's work is in.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.config import check, choose, override
from jaxvl.data import bottlenecks
from jaxvl.data.augment import Augment, augment
from jaxvl.data.batches import Batches
from jaxvl.data.cache import Cache
from jaxvl.data.config import DataConfig
from jaxvl.data.feed import Feed
from jaxvl.data.fields.base import Context, Reader
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.pictures import open_picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Record, Source, SourceConfig
from jaxvl.data.sources.selected import Selected
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.sharding import make_mesh

TEXTS = (
    "name/en",
    "text",
    "caption",
)  # columns that are taken for the text, the first that there is
VOCABULARY = 8_000  # most tokens
# What the device does to a batch: nothing, what photos get, and all that changes a drawing's style.
AUGMENTATIONS = {
    "background only": Augment(),
    "photo (SimCLR)": Augment(
        flip=0.5,
        hue=25.0,
        saturation=(0.2, 1.8),
        grayscale=0.2,
        contrast=0.4,
        brightness=0.2,
        blur=0.5,
    ),
    "drawing style": Augment(
        rotate=12.0,
        zoom=(0.7, 1.25),
        stretch=0.25,
        shear=0.12,
        shift=0.06,
        hue=20.0,
        saturation=(0.3, 1.6),
        grayscale=0.12,
        contrast=0.25,
        brightness=0.12,
        tint=0.05,
        posterise=0.25,
        outline=0.5,
        line_drawing=0.1,
        invert=0.03,
        background=0.5,
    ),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measurement of `images` pictures (or texts)."""

    part: str
    images: int
    seconds: float
    core_seconds: float

    @property
    def row(self) -> dict[str, Json]:
        return {
            "part": self.part,
            "images": self.images,
            "images_per_second": self.images / self.seconds,
            "images_per_second_per_core": self.images / self.core_seconds,
            "core_us_per_image": 1e6 * self.core_seconds / self.images,
        }


def measure(part: str, images: int, work: Callable[[], object]) -> Figure:
    """Runs `work` once."""
    wall = time.perf_counter()
    core = time.process_time()
    work()
    return Figure(
        part, images, max(time.perf_counter() - wall, 1e-9), max(time.process_time() - core, 1e-9)
    )


def numbers(source: Source, n: int) -> list[int]:
    """So many records, spread over the source."""
    return np.linspace(0, len(source) - 1, n).astype(int).tolist()


def read(source: Source, wanted: Sequence[int], columns: Sequence[str]) -> list[Record]:
    """Some records, without the bad ones."""
    found = []
    for i in wanted:
        try:
            found.append(source.read(i, columns))
        except BadRecord:
            continue
    return found


def loaded(
    readers: Mapping[str, Reader], records: Sequence[Record]
) -> list[tuple[Record, dict[str, Json]]]:
    """Those records of which every field takes something, with what it takes."""
    found = []
    for record in records:
        try:
            values = {name: reader.load(record) for name, reader in readers.items()}
        except BadRecord:
            continue
        if all(value is not None for value in values.values()):
            found.append((record, values))
    check(bool(found), "source", "none of the records that were tried has a picture and a text")
    return found


def host_parts(config: DataConfig, source: Source, tokenizer: Tokenizer, n: int) -> list[Figure]:
    """Each step from a record to a row on its own, in one thread, over `n` records spread over the
    source."""
    picture: Picture = config.fields["image"]
    caption: Caption = config.fields["text"]
    size = picture.size
    preprocess = Preprocess(size)
    context = Context(tokenizer, preprocess, Cache(0))
    readers = {name: field.reader(name, source, context) for name, field in config.fields.items()}
    columns = [column for reader in readers.values() for column in reader.columns]
    wanted = numbers(source, n)
    records: list[Record] = []
    figures = [measure("read a record", n, lambda: records.extend(read(source, wanted, columns)))]

    good = loaded(readers, records)
    n = len(good)
    pictures = [record[picture.column] for record, _ in good]
    figures.append(
        measure(
            "decode at its stored size",
            n,
            lambda: [np.asarray(open_picture(data)) for data in pictures],
        )
    )
    for how, fast in (("", False), (", fast_decode", True)):
        work = lambda fast=fast: [preprocess.decode(data, fast=fast) for data in pictures]
        figures.append(measure(f"decode and scale to {size} px{how}", n, work))

    out = {name: np.zeros((1, *row.shape), row.dtype) for name, row in config.entries.items()}
    drawn = np.random.default_rng(0).random((n, max(picture.draws, caption.draws))).tolist()
    for name, what in (
        ("image", "write a picture's row"),
        ("text", "write a caption's row: choose, tokenise"),
    ):
        work = lambda name=name: [
            readers[name].write(out, 0, values[name], row) for (_, values), row in zip(good, drawn)
        ]
        figures.append(measure(what, n, work))
    texts = [values["text"][0][1][0][0] for _, values in good]
    figures.append(
        measure("tokenise a text, all together", n, lambda: tokenizer.encode(texts, caption.length))
    )
    return figures


def first_of(source: Source, batches: int, rows: int) -> tuple[Source, int]:
    """The records of so many batches at most, so that an epoch of them is soon read, and the whole
    batches of that epoch."""
    count = min(len(source), batches * rows)
    return Selected(source, np.arange(count), f"first {count}"), max(1, count // rows)


def whole_batches(
    config: DataConfig, source: Source, tokenizer: Tokenizer, epoch: int
) -> list[Figure]:
    """Batches as numpy arrays: cold (one epoch) and warm (the next two)."""
    batches = Batches(config, source, tokenizer, seed=0)
    images = epoch * config.batch

    def take(first: int, last: int) -> None:
        for i in range(first, last):
            batches[i]

    try:
        cold = measure("batch, cold", images, lambda: take(0, epoch))
        return [cold, measure("batch, warm", 2 * images, lambda: take(epoch, 3 * epoch))]
    finally:
        batches.close()


def whole_feed(
    config: DataConfig, source: Source, tokenizer: Tokenizer, epoch: int
) -> tuple[list[Figure], dict[str, dict[str, float]]]:
    """Batches through the feed onto the mesh: cold (one epoch) and warm (the next two).

    Returns the figures, and "cold" and "warm" -> share of each stage in the work.
    """
    feed = Feed(config, source, tokenizer, seed=0, mesh=make_mesh())
    images = epoch * config.batch

    def take(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(next(feed))

    try:
        cold = measure("feed onto the mesh, cold", images, lambda: take(epoch))
        before = feed.stage_seconds
        warm = measure("feed onto the mesh, warm", 2 * images, lambda: take(2 * epoch))
        after = feed.stage_seconds
    finally:
        feed.close()
    rest = {stage: after[stage] - before[stage] for stage in after}
    return [cold, warm], {"cold": bottlenecks.shares(before), "warm": bottlenecks.shares(rest)}


def device_parts(batch: int, size: int, repeats: int) -> list[Figure]:
    """Augmentation, compiled, per `AUGMENTATIONS` entry."""
    images = jax.device_put(
        np.random.default_rng(0).integers(0, 256, (batch, size, size, 4), np.uint8)
    )
    keys = jax.random.split(jax.random.key(0), batch)
    figures = []
    for name, how in AUGMENTATIONS.items():
        step = jax.jit(lambda x, k, how=how: augment(x, k, how))
        jax.block_until_ready(step(images, keys))
        work = lambda step=step: (
            [jax.block_until_ready(step(images, keys)) for _ in range(repeats)] and None
        )
        figures.append(measure(f"augment on the device: {name}", repeats * batch, work))
    return figures


def table(figures: Sequence[Figure], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    for heading, side in (
        ("part", "left"),
        ("images/s", "right"),
        ("images/s per core", "right"),
        ("µs of a core per image", "right"),
    ):
        out.add_column(heading, justify=side)
    for row in (f.row for f in figures):
        out.add_row(
            row["part"],
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second_per_core']:,.0f}",
            f"{row['core_us_per_image']:,.1f}",
        )
    return out


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, SourceConfig]:
    """(options, the source's config). Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxvl.bench.data",
        description="Speed of the data pipeline, part by part.",
        epilog="--source.KEY=VALUE sets an option of the source.",
    )
    parser.add_argument(
        "--source",
        help=f"which records, by name: {', '.join(SOURCES)}; none: emoji, its split train_a",
    )
    parser.add_argument("--image", default="image", help="column of the pictures")
    parser.add_argument(
        "--text",
        help=f"column of the texts, or a pattern of columns; none: the first of {', '.join(TEXTS)}",
    )
    parser.add_argument(
        "--image-size", type=int, default=64, help="side of the pictures of a batch, pixels"
    )
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument(
        "--batches",
        type=int,
        default=64,
        help="batches of records that whole batches are made of, at most",
    )
    parser.add_argument("--text-length", type=int, default=16, help="tokens of a row")
    parser.add_argument(
        "--records", type=int, default=1000, help="records for the parts on their own"
    )
    parser.add_argument("--repeats", type=int, default=10, help="batches for each augmentation")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args, others = parser.parse_known_args(argv)
    unknown = [word for word in others if not word.startswith("--source.") or "=" not in word]
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}")
    assignments = dict(word.removeprefix("--").split("=", 1) for word in others)
    node = dict(name="emoji", split="train_a") if args.source is None else dict(name=args.source)
    filled = override(ml_collections.ConfigDict(dict(source=node)), assignments).to_dict()
    args.source = filled["source"]
    return args, choose(SOURCES, filled["source"], "source")


def text_column(source: Source) -> str:
    """The column of texts that is taken where none is named. Raises ConfigError."""
    found = [name for name in TEXTS if name in source.columns]
    found += [name for name, column in source.columns.items() if column.kind in ("text", "texts")]
    check(bool(found), "text", f"must name a column; {source.name} has no texts")
    return found[0]


def train(source: Source, caption: Caption, n: int) -> tuple[Tokenizer, Figure]:
    """A vocabulary of the texts of `n` records, and how long its training takes."""
    columns = [column for names, _ in caption.matched(source) for column in names]
    texts: list[str] = []
    for record in read(source, numbers(source, n), columns):
        for value in record.values():
            texts += [value] if isinstance(value, str) else value
    size = min(
        VOCABULARY,
        16 + len(set("".join(texts))) + len({word for text in texts for word in text.split()}),
    )
    trained: list[Tokenizer] = []
    work = lambda: trained.append(make_tokenizer(TokenizerConfig(vocab_size=size), texts))
    figure = measure("train the vocabulary (texts)", max(1, len(texts)), work)
    return trained[0], figure


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the table; returns (and, with --json, writes) the figures and the machine."""
    args, source_config = parse(argv)
    console = Console()
    source = source_config.open(log=console.print)
    text = Caption(args.text or text_column(source), length=args.text_length)
    fields = dict(image=Picture(args.image, args.image_size), text=text)
    config = DataConfig(source_config, args.batch, fields, sampler=Shuffled())
    source = config.select(source)
    n = min(args.records, len(source))
    tokenizer, training = train(source, text, n)
    some, epoch = first_of(source, args.batches, args.batch)
    fed, shares = whole_feed(config, some, tokenizer, epoch)
    figures = [
        training,
        *host_parts(config, source, tokenizer, n),
        *whole_batches(config, some, tokenizer, epoch),
        *fed,
        *device_parts(config.batch, args.image_size, args.repeats),
    ]
    out = {
        "arguments": {
            k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()
        },
        "figures": [f.row for f in figures],
        "stages": shares,
    }
    title = f"{source.name}, batch {args.batch}, {args.image_size} px, {args.text_length} tokens"
    result = publish(console, table(figures, title), out, args.json)
    for kind, of in shares.items():
        console.print(
            f"work of the feed, {kind}: "
            + ", ".join(f"{stage} {share:.0%}" for stage, share in of.items())
        )
    return result


if __name__ == "__main__":
    main()
