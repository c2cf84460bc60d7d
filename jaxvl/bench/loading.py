"""How fast JPEGs in tar shards become batches, beside webdataset and open_clip's way of loading.

    python -m jaxvl.bench.loading                               # 10,000 made pictures of 375 x 500, crops of 224 px
    python -m jaxvl.bench.loading --images=2000 --threads=2 --json=out.json

Each way reads the same shards in a process of its own, in turn, and gives batches of random crops
(90 to 100 % of the area) with token ids. The order of the ways is turned round each round. Figures
are processor time for each row, all threads together: a property of the code, which holds on a busy
machine too. `webdataset` decodes and crops by Pillow and stops at uint8. `open_clip` has the stages
of its `open_clip_train/data.py`, with its own transform, which ends in normalised float32. jaxvl's
pictures are normalised on the devices.

The stages of a row are: read (out of the tar, and the shuffling of webdataset's buffer), decode
(JPEG to pixels), transform (crop, scale, token ids, batch). Those of jaxvl share the processor time
of a row as they share its time by the clock.

The last line says what a host of 8 fast chips would need: rows of a step over the seconds of a row,
in cores.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.decode import made
from jaxvl.bench.harness import add_member, isolated, processor_seconds, publish, ratio
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess, crop_box
from jaxvl.data.sources.webdataset import WebDataset
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.interop.peers import peer

SIDE = 224
LENGTH = 77  # tokens
BATCH = 100
SHARD = 500  # records
AREA = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
STAGES = ("read", "decode", "transform")
HOST_ROWS = 4096  # of a step of a host with 8 fast chips
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "red",
    "green",
    "small",
    "large",
    "old",
    "dog",
    "house",
    "river",
    "street",
    "mountain",
    "under",
    "over",
    "beside",
]

Take = Callable[[], dict[str, float]]


def write_shards(folder: pathlib.Path, images: int, distinct: int = 200) -> None:
    """Tars of pictures with captions; the pictures repeat after `distinct`, which no reader can
    make use of."""
    pictures = [
        made(i, *((375, 500) if i % 2 else (500, 375))) for i in range(min(distinct, images))
    ]
    rng = np.random.default_rng(0)
    for first in range(0, images, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as tar:
            for i in range(first, min(first + SHARD, images)):
                text = " ".join(rng.choice(WORDS, 10))
                for suffix, content in (
                    ("jpg", pictures[i % len(pictures)]),
                    ("txt", text.encode()),
                ):
                    add_member(tar, f"{i:09d}.{suffix}", content)


def clip_tokenizer() -> Tokenizer:
    """CLIP's byte pairs, from the file that open_clip carries."""
    return make_tokenizer(TokenizerConfig(kind="clip"))


def ours(folder: str, images: int, reader: ReaderConfig) -> Take:
    """jaxvl: threads, here or in other processes, read and decode records into the arrays of a
    batch."""
    source = WebDataset(f"{folder}/*.tar").open(lambda text: None)
    fields = dict(
        image=Picture(size=SIDE, crop=AREA), text=Caption(columns={"text": 1.0}, length=LENGTH)
    )
    config = DataConfig(WebDataset(f"{folder}/*.tar"), BATCH, fields, reader=reader)
    tokenizer = clip_tokenizer()
    epochs = iter(range(1_000_000))

    def take() -> dict[str, float]:
        batches = Batches(
            config, source, tokenizer, seed=next(epochs), preprocess=Preprocess(image_size=SIDE)
        )
        if batches.workers:
            batches[0]  # they have started
        figures = timed(
            images, lambda: [len(batches[i]) for i in range(images // BATCH)], batches.workers
        )
        seconds = batches.seconds()
        batches.close()
        share = figures["core µs"] / sum(seconds.values())
        return figures | {f"{stage} µs": share * seconds[stage] for stage in STAGES}

    return take


def webdataset(folder: str, images: int, reader: ReaderConfig) -> Take:
    """webdataset: Pillow decodes, crops and scales, in one thread."""
    import webdataset as wds

    rng = np.random.default_rng(0)

    def transform(picture: Image.Image) -> np.ndarray:
        return np.asarray(cropped(picture, rng))

    encode = functools.partial(tokens, clip_tokenizer())
    return _pipeline(wds, folder, images, transform, encode)


def open_clip(folder: str, images: int, reader: ReaderConfig) -> Take:
    """open_clip: its transform (torchvision on Pillow, float32, normalised) and its tokenizer, in
    its pipeline."""
    import webdataset as wds

    library = peer("open_clip")
    peer("torch").set_num_threads(1)
    tokenizer = library.get_tokenizer("ViT-B-32")
    transform = library.image_transform(SIDE, is_train=True, mean=MEAN, std=STD)
    return _pipeline(wds, folder, images, transform, lambda text: tokenizer(text)[0])


def _pipeline(
    wds: Any,
    folder: str,
    images: int,
    transform: Callable[[Image.Image], Any],
    encode: Callable[[str], Any],
) -> Take:
    urls = sorted(map(str, pathlib.Path(folder).glob("*.tar")))

    def take() -> dict[str, float]:
        seconds: dict[str, float] = {}
        stages = [
            wds.SimpleShardList(urls),
            wds.tarfile_to_samples(),
            wds.shuffle(200, initial=100),
            functools.partial(metered, seconds, "read"),
            wds.decode("pilrgb"),
            functools.partial(metered, seconds, "decode"),
            wds.rename(image="jpg;png;jpeg;webp", text="txt"),
            wds.map_dict(image=transform, text=encode),
            wds.to_tuple("image", "text"),
            wds.batched(BATCH, partial=False),
            functools.partial(metered, seconds, "transform"),
        ]
        figures = timed(images, lambda: [len(batch) for batch in wds.DataPipeline(*stages)])
        before = {"read": 0.0, "decode": seconds["read"], "transform": seconds["decode"]}
        return figures | {
            f"{stage} µs": 1e6 * (seconds[stage] - before[stage]) / images for stage in STAGES
        }

    return take


Sample = TypeVar("Sample")


def metered(seconds: dict[str, float], stage: str, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples; `seconds[stage]` is the processor time that they took up to here."""
    seconds[stage] = 0.0
    iterator = iter(samples)
    while True:
        began = time.process_time()
        sample = next(iterator, None)
        seconds[stage] += time.process_time() - began
        if sample is None:
            return
        yield sample


def cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part, scaled as torchvision's RandomResizedCrop does it with Pillow."""
    left, top, right, bottom = (
        round(value) for value in crop_box(*picture.size, AREA, RATIO, rng.random(4).tolist())
    )
    return picture.crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode([text], LENGTH)[0]


def timed(images: int, work: Callable[[], object], workers: Sequence[int] = ()) -> dict[str, float]:
    """Processor time, that of other processes with it, and wall time of `work`, for each of
    `images` rows, in µs."""
    wall = time.perf_counter()
    core = time.process_time() + processor_seconds(workers)
    work()
    return {
        "core µs": 1e6 * (time.process_time() + processor_seconds(workers) - core) / images,
        "wall µs": 1e6 * (time.perf_counter() - wall) / images,
    }


WAYS = {"jaxvl": ours, "webdataset": webdataset, "open_clip": open_clip}


@contextlib.contextmanager
def shards(folder: pathlib.Path | None, images: int) -> Iterator[pathlib.Path]:
    """A folder of shards; made ones are deleted at the end."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxvl-loading-") as made_here:
        write_shards(pathlib.Path(made_here), images)
        yield pathlib.Path(made_here)


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the table; returns (and, with --json, writes) the figures and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=10_000, help=f"rows of a round, a multiple of {BATCH}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, each way in turn")
    parser.add_argument("--threads", type=int, default=1, help="of jaxvl")
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        help="of jaxvl, each with its threads; 0: none but this one",
    )
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=list(WAYS),
        help=f"of {', '.join(WAYS)}",
    )
    parser.add_argument("--folder", type=pathlib.Path, help="tars of your own, with .jpg and .txt")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    console = Console()
    reader = ReaderConfig(args.threads, args.processes, cache_mb=0)
    with shards(args.folder, args.images) as folder, contextlib.ExitStack() as stack:
        takers = {
            way: stack.enter_context(isolated(WAYS[way], str(folder), args.images, reader))
            for way in args.ways
        }
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in takers}
        for i in range(args.rounds + 1):  # the first warms up: indexes, files in memory
            for way in list(takers)[:: 1 if i % 2 else -1]:
                figures = takers[way]()
                if i:
                    rounds[way].append(figures)
    core = {way: [figures["core µs"] for figures in of] for way, of in rounds.items()}
    ratios = {way: ratio(core, "jaxvl", way) for way in core if "jaxvl" in core}
    table = described(f"Loading {args.images:,} JPEGs from tars, {SIDE} px crops", rounds, ratios)
    return publish(console, table, {"rounds": rounds, "ratios": ratios}, args.json)


def described(
    title: str,
    rounds: Mapping[str, list[dict[str, float]]],
    ratios: Mapping[str, tuple[float, float, float]],
) -> Table:
    """The round of each way that took least processor time: by stage, in all, and as cores of a
    large host."""
    table = Table(title=title, title_justify="left")
    best = {way: min(of, key=lambda figures: figures["core µs"]) for way, of in rounds.items()}
    table.add_column("µs of a core for a row")
    for way in best:
        table.add_column(way, justify="right")
    for stage in STAGES:
        table.add_row(stage, *(f"{figures[f'{stage} µs']:,.0f}" for figures in best.values()))
    table.add_section()
    table.add_row("all", *(f"{figures['core µs']:,.0f}" for figures in best.values()))
    table.add_row("by the clock", *(f"{figures['wall µs']:,.0f}" for figures in best.values()))
    table.add_row(
        "rows/s a core", *(f"{1e6 / figures['core µs']:,.0f}" for figures in best.values())
    )
    table.add_row(
        f"cores for {HOST_ROWS:,} rows/s",
        *(f"{HOST_ROWS * figures['core µs'] / 1e6:.1f}" for figures in best.values()),
    )
    if ratios:
        table.add_section()
        table.add_row("jaxvl is as fast, times", *(f"{ratios[way][0]:.2f}" for way in best))
        table.add_row(
            "lowest … highest round",
            *(f"{ratios[way][1]:.2f} … {ratios[way][2]:.2f}" for way in best),
        )
    return table


if __name__ == "__main__":
    main()
