"""Threads or processes: how fast each reads what, and what it costs the process that trains.

    python -m jaxvl.bench.readers                                          # four kinds of records, six ways of reading
    python -m jaxvl.bench.readers --kinds=webp,text --rounds=5 --json=out.json

Rows a second are by the clock, of the best round, and need cores of their own to mean something.
`core µs` is processor time of a row, all threads and processes together; `own µs` the part of it in
the process that reads its batches, where the training loop runs too.
"""

from __future__ import annotations

import argparse
import io
import itertools
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.decode import made
from jaxvl.bench.harness import add_member, isolated, processor_seconds, publish
from jaxvl.bench.loading import LENGTH, WORDS, clip_tokenizer
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.feed import in_flight
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.webdataset import WebDataset

AHEAD = 4  # batches whose records are read at a time
BATCH = 100
SMALL = 48  # side of small pictures
# Kind -> records, and side of what is read in pixels.
KINDS = {"jpeg": (600, 224), "png": (3000, SMALL), "webp": (3000, SMALL), "text": (6000, None)}
WAYS = {
    "1 thread": ReaderConfig(1, 0, cache_mb=0),
    "2 threads": ReaderConfig(2, 0, cache_mb=0),
    "4 threads": ReaderConfig(4, 0, cache_mb=0),
    "1 process": ReaderConfig(1, 1, cache_mb=0),
    "2 processes": ReaderConfig(1, 2, cache_mb=0),
    "2 processes of 2 threads": ReaderConfig(2, 2, cache_mb=0),
}


def content(kind: str, i: int) -> bytes:
    """An encoded picture: a photo of 375 x 500, or a drawing with transparency."""
    if kind == "jpeg":
        return made(i, *((375, 500) if i % 2 else (500, 375)))
    small = np.random.default_rng(i).integers(0, 256, (6, 6, 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((SMALL, SMALL), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def write_tar(file: pathlib.Path, kind: str) -> None:
    """Records of a kind; pictures repeat after 100, which no reader can make use of."""
    count, side = KINDS[kind]
    pictures = [content(kind, i) for i in range(100)] if side else []
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w") as tar:
        for i in range(count):
            members = [("txt", " ".join(rng.choice(WORDS, 12)).encode())]
            members += [(kind, pictures[i % len(pictures)])] if side else []
            for suffix, data in members:
                add_member(tar, f"{i:06d}.{suffix}", data)


def taker(file: str, kind: str, way: str) -> Callable[[], dict[str, float]]:
    """Reads all records of a kind once more with each call."""
    count, side = KINDS[kind]
    fields: dict[str, Json] = {"text": Caption(length=LENGTH)}
    if side:
        fields["image"] = Picture(size=side, crop=(0.9, 1.0))
    columns = {"text": "txt", **({"image": kind} if side else {})}
    config = DataConfig(WebDataset(file, columns=columns), BATCH, fields, reader=WAYS[way])
    source = config.source.open(lambda text: None)
    batches = Batches(
        config, source, clip_tokenizer(), seed=0, preprocess=Preprocess(image_size=side or SMALL)
    )
    taken = in_flight(batches, AHEAD)

    def take() -> dict[str, float]:
        wall = time.perf_counter()
        own = time.process_time()
        workers = processor_seconds(batches.workers)
        for _ in itertools.islice(taken, count // BATCH):
            pass
        own = time.process_time() - own
        spent = own + processor_seconds(batches.workers) - workers
        return {
            "rows/s": count / (time.perf_counter() - wall),
            "core µs": 1e6 * spent / count,
            "own µs": 1e6 * own / count,
        }

    return take


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the table; returns (and, with --json, writes) the figures and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds",
        type=lambda text: text.split(","),
        default=list(KINDS),
        help=f"of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=list(WAYS),
        help=f"of {', '.join(WAYS)}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, each way in turn")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    console = Console()
    table = Table(title="Rows read and decoded", title_justify="left")
    for heading in ("records", "read by", "rows/s", "core µs a row", "own µs a row"):
        table.add_column(heading, justify="left" if heading in ("records", "read by") else "right")
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="jaxvl-readers-") as folder:
        for kind in args.kinds:
            file = pathlib.Path(folder) / f"{kind}.tar"
            write_tar(file, kind)
            found[kind] = {way: [] for way in args.ways}
            for _ in range(args.rounds):
                for way in args.ways:
                    with isolated(taker, str(file), kind, way) as take:
                        take()  # starts workers, reads files into memory
                        found[kind][way].append(take())
            for way, rounds in found[kind].items():
                best = max(figures["rows/s"] for figures in rounds)
                cheapest = [
                    min(figures[name] for figures in rounds) for name in ("core µs", "own µs")
                ]
                table.add_row(kind, way, f"{best:,.0f}", *(f"{value:,.0f}" for value in cheapest))
            table.add_section()
    return publish(console, table, {"rounds": found}, args.json)


if __name__ == "__main__":
    main()
