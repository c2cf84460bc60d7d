"""Memory, descriptors and threads of a feed, over many batches of texts that never come twice.

    python -m jaxvl.bench.feed_memory --json=out.json                      # 20,000 batches by threads, then by processes
    python -m jaxvl.bench.feed_memory --batches=2000 --ways=processes

The records are tars of small pictures, each with a text of its own. `reader.cache_mb` and
`reader.prefetch_mb` are small, so that whatever is kept beside them shows. Each way runs in a
process of its own. Memory of a worker is its private part and its share of what it shares with
others (PSS).
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import add_member, isolated, publish
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.feed import Feed
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.sources.webdataset import WebDataset
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer
from jaxvl.sharding import make_mesh

ROWS = 16
SIDE = 32
LENGTH = 32  # tokens
SHARD = 20_000  # records
WAYS = {
    "threads": ReaderConfig(2, cache_mb=8, prefetch_mb=1),
    "processes": ReaderConfig(1, 2, cache_mb=8, prefetch_mb=1),
}
Sample = dict[str, int]


def text_of(i: int) -> str:
    """A text that no other record has."""
    return " ".join(
        f"{word:05d}" for word in np.random.default_rng(i).integers(0, 100_000, 6).tolist() + [i]
    )


def write_shards(folder: pathlib.Path, records: int) -> None:
    """Tars of so many records; the pictures repeat, the texts do not."""
    pictures = []
    for i in range(50):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (SIDE, SIDE)
        ).save(out, "PNG")
        pictures.append(out.getvalue())
    for first in range(0, records, SHARD):
        with tarfile.open(
            folder / f"{first // SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for i in range(first, min(first + SHARD, records)):
                for suffix, content in (
                    ("png", pictures[i % len(pictures)]),
                    ("txt", text_of(i).encode()),
                ):
                    add_member(tar, f"{i:09d}.{suffix}", content)


def kilobytes(pid: int | str, name: str) -> int:
    """A line of what Linux tells about a process's memory."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name}")


def sample(workers: Sequence[int]) -> Sample:
    """Memory in kB, open descriptors and threads, of this process and of its workers together."""
    found = {
        "kB": kilobytes("self", "Rss"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }
    if workers:
        found["workers' kB"] = sum(kilobytes(pid, "Pss") for pid in workers)
        found["workers' descriptors"] = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers)
        found["workers' threads"] = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in workers)
    return found


def run(folder: str, way: str, batches: int, points: int) -> Callable[[], list[Sample]]:
    """Takes all batches of a feed; gives samples along them."""
    config = WebDataset(f"{folder}/*.tar")
    fields = dict(image=Picture(size=SIDE), text=Caption(length=LENGTH))
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=300), map(text_of, range(2000)))
    source = config.open(log=lambda line: None)
    feed = Feed(
        DataConfig(config, ROWS, fields, reader=WAYS[way]),
        source,
        tokenizer,
        seed=0,
        mesh=make_mesh(devices=jax.devices()[:1]),
    )
    workers = feed.workers

    def take() -> list[Sample]:
        samples = []
        jax.block_until_ready(next(feed))
        for i in range(batches + 1):
            if i % (batches // points) == 0:
                samples.append({"batches": i, **sample(workers)})
            jax.block_until_ready(next(feed))
        feed.close()
        return samples

    return take


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the samples; returns (and, with --json, writes) them and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20_000, help=f"of {ROWS} rows each")
    parser.add_argument("--points", type=int, default=20, help="samples along them")
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=list(WAYS),
        help=f"of {', '.join(WAYS)}",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    console = Console()
    found: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="jaxvl-memory-") as folder:
        write_shards(pathlib.Path(folder), (args.batches + 100) * ROWS)
        for way in args.ways:
            with isolated(run, folder, way, args.batches, args.points) as take:
                found[way] = take()
    table = Table(
        title=f"A feed over {args.batches:,} batches of {ROWS} rows, no text twice",
        title_justify="left",
    )
    for heading in (
        "way",
        "batches",
        "MB",
        "descriptors",
        "threads",
        "workers' MB",
        "descriptors",
        "threads",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, samples in found.items():
        for one in samples:
            own = (
                f"{one['batches']:,}",
                f"{one['kB'] / 1024:.1f}",
                str(one["descriptors"]),
                str(one["threads"]),
            )
            theirs = ("", "", "")
            if "workers' kB" in one:
                workers_kb = one["workers' kB"]
                theirs = (
                    f"{workers_kb / 1024:.1f}",
                    str(one["workers' descriptors"]),
                    str(one["workers' threads"]),
                )
            table.add_row(way, *own, *theirs)
    return publish(console, table, {"samples": found}, args.json)


if __name__ == "__main__":
    main()
