"""How fast JPEGs become pictures of a batch, by library.

What training uses, what evaluation uses, and whatever else is installed.

    python -m jaxvl.bench.decode                          # 1,000 made pictures of 375 x 500, crops of 224 px
    python -m jaxvl.bench.decode --folder=/data/photos    # your own JPEGs

"Decode" is a JPEG to uint8 [H, W, 3] at its own size; "crop" is a JPEG to a random part, uint8 [S,
S, 3]. Figures are processor time of one thread per picture, the lowest of all rounds, so that a
busy machine does not count; pictures a second with several threads are by the clock. "Off" is the
mean difference from evaluation's pixels, of 255. Made pictures have the spectrum of photos and the
size of ImageNet's files.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib
import io
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.data import fast_pictures
from jaxvl.data.pictures import decode_picture, open_picture
from jaxvl.data.preprocess import Box, crop_box, fit, fit_into, sides

Decode = Callable[[bytes], np.ndarray]
Crop = Callable[[bytes, Box, int], np.ndarray]
RATIO = (3 / 4, 4 / 3)  # width / height of a random part


# --------------------------------------------------------------------------------------------------
# Ways. Each library is one function that makes them, so that one which is missing is left out by
# name.


def ours() -> tuple[Decode, Crop]:
    """What training does with `fast_decode`."""

    def crop(data: bytes, box: Box, size: int) -> np.ndarray:
        picture = decode_picture(data, size)
        out = np.empty((size, size, 4), np.uint8)
        fit_into(out, picture, scaled(box, data, *sides(picture)), "bicubic", fast=True)
        return out[..., :3]

    return lambda data: decode_picture(data, 1 << 16)[..., :3], crop


def scaled(box: Box, data: bytes, width: int, height: int) -> Box:
    """A box of the whole picture in the pixels of one that was decoded at a fraction of its
    size."""
    with Image.open(io.BytesIO(data)) as whole:
        across = width / whole.width
        down = height / whole.height
    return box[0] * across, box[1] * down, min(box[2] * across, width), min(box[3] * down, height)


def exact() -> tuple[Decode, Crop]:
    """What evaluation does: Pillow."""
    return lambda data: np.asarray(open_picture(data)), lambda data, box, size: fit(
        open_picture(data), size, box, "bicubic"
    )


def pillow_fast() -> tuple[Decode, Crop]:
    """What training does where the other libraries are not installed: Pillow, scaling in two
    steps."""

    def crop(data: bytes, box: Box, size: int) -> np.ndarray:
        picture = Image.open(io.BytesIO(data))
        picture.draft("RGB", (size, size))
        box = scaled(box, data, *picture.size)
        return np.asarray(
            picture.convert("RGB").resize(
                (size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
            )
        )

    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), crop


def pillow_by(decode: Decode, data: bytes, box: Box, size: int) -> np.ndarray:
    """Another library's pixels, scaled by Pillow."""
    return np.asarray(
        Image.fromarray(decode(data)).resize((size, size), Image.Resampling.BICUBIC, box=box)
    )


def simplejpeg_alone() -> tuple[Decode, Crop]:
    decode = importlib.import_module("simplejpeg").decode_jpeg
    return decode, functools.partial(pillow_by, decode)


def opencv() -> tuple[Decode, Crop]:
    """Its `INTER_AREA` is the only filter of its `resize` that averages; parts begin at whole
    pixels."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    decode = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def crop(data: bytes, box: Box, size: int) -> np.ndarray:
        left, top, right, bottom = (round(value) for value in box)
        return cv2.resize(
            decode(data)[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA
        )

    return decode, crop


def turbojpeg() -> tuple[Decode, Crop]:
    """PyTurboJPEG; needs the system's libturbojpeg."""
    module = importlib.import_module("turbojpeg")
    decode = functools.partial(module.TurboJPEG().decode, pixel_format=module.TJPF_RGB)
    return decode, functools.partial(pillow_by, decode)


def imagecodecs() -> tuple[Decode, Crop]:
    decode = importlib.import_module("imagecodecs").jpeg8_decode
    return decode, functools.partial(pillow_by, decode)


def libvips() -> tuple[Decode, Crop]:
    """pyvips; its threads cannot be counted by thread, so set VIPS_CONCURRENCY=1."""
    image = importlib.import_module("pyvips").Image
    decode = lambda data: image.new_from_buffer(data, "", access="sequential").numpy()

    def crop(data: bytes, box: Box, size: int) -> np.ndarray:
        left, top, right, bottom = (round(value) for value in box)
        part = image.new_from_buffer(data, "").crop(left, top, right - left, bottom - top)
        return part.resize(size / part.width, vscale=size / part.height, kernel="cubic").numpy()[
            :size, :size
        ]

    return decode, crop


def torchvision() -> tuple[Decode, Crop]:
    """Its decoder, and torch's bicubic filter for bytes; parts begin at whole pixels."""
    torch = importlib.import_module("torch")
    vision = importlib.import_module("torchvision.io")
    scale = functools.partial(torch.nn.functional.interpolate, mode="bicubic", antialias=True)
    torch.set_num_threads(1)
    pixels = lambda data: vision.decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), vision.ImageReadMode.RGB
    )

    def crop(data: bytes, box: Box, size: int) -> np.ndarray:
        left, top, right, bottom = (round(value) for value in box)
        return (
            scale(pixels(data)[None, :, top:bottom, left:right], (size, size))[0]
            .permute(1, 2, 0)
            .numpy()
        )

    return lambda data: pixels(data).permute(1, 2, 0).numpy(), crop


def kornia() -> tuple[Decode, Crop]:
    """kornia-rs; its own scaling does not average, so Pillow scales."""
    decode = functools.partial(
        importlib.import_module("kornia_rs").io.decode_image_jpegturbo, mode="rgb"
    )
    return (lambda data: np.asarray(decode(data))), functools.partial(
        pillow_by, lambda data: np.asarray(decode(data))
    )


WAYS: Mapping[str, Callable[[], tuple[Decode, Crop]]] = {
    "training (jaxvl)": ours,
    "evaluation (jaxvl, Pillow)": exact,
    "Pillow, in two steps": pillow_fast,
    "simplejpeg, Pillow": simplejpeg_alone,
    "OpenCV": opencv,
    "PyTurboJPEG, Pillow": turbojpeg,
    "imagecodecs, Pillow": imagecodecs,
    "libvips": libvips,
    "torchvision": torchvision,
    "kornia-rs, Pillow": kornia,
}


def installed(first: bytes) -> tuple[dict[str, tuple[Decode, Crop]], dict[str, str]]:
    """(the ways that decode `first`, why the others do not)."""
    found = {}
    missing = {}
    for name, make in WAYS.items():
        try:
            way = make()
            way[0](first)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        else:
            found[name] = way
    return found, missing


# --------------------------------------------------------------------------------------------------
# Pictures


def made(seed: int, width: int, height: int) -> bytes:
    """A JPEG with the spectrum of a photo, and about its size."""
    rng = np.random.default_rng(seed)
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    squared[0, 0] = 1
    layers = [
        np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((height, width))) / squared**0.55, (height, width)
        )
        for _ in range(3)
    ]
    mixed = np.stack([layers[0] + 0.35 * layer for layer in layers], -1)
    pixels = np.clip((mixed - mixed.mean()) / mixed.std() * 55 + 120, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def pictures(folder: pathlib.Path | None, n: int) -> Iterator[bytes]:
    """`n` JPEGs of a folder, or made ones, upright and lying in turn."""
    if folder is None:
        yield from (made(i, *((375, 500) if i % 2 else (500, 375))) for i in range(n))
        return
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"--folder: {str(folder)!r} has no .jpg or .jpeg")
    yield from (path.read_bytes() for path in files[:n])


# --------------------------------------------------------------------------------------------------
# Time


def lowest(works: Mapping[str, Callable[[int], object]], n: int, rounds: int) -> dict[str, float]:
    """Microseconds of processor time per call `work(i)`: the mean over `n` of the lowest of the
    rounds. Ways take turns."""
    best = {name: np.full(n, np.inf) for name in works}
    for _ in range(rounds):
        for i in range(n):
            for name, work in works.items():
                began = time.thread_time()
                work(i)
                best[name][i] = min(best[name][i], time.thread_time() - began)
    return {name: 1e6 * float(values.mean()) for name, values in best.items()}


def by_clock(
    works: Mapping[str, Callable[[int], object]], n: int, rounds: int, threads: int
) -> dict[str, float]:
    """Calls a second of `threads` threads: the median of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            for name, work in works.items():
                began = time.perf_counter()
                list(pool.map(work, range(n)))
                rates[name].append(n / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def difference(
    crop: Crop, wanted: Crop, files: Sequence[bytes], boxes: Sequence[Box], size: int
) -> float:
    """Mean absolute difference of two ways, of 255."""
    pairs = [
        (crop(data, box, size).astype(int), wanted(data, box, size))
        for data, box in zip(files, boxes)
    ]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def main(argv: Sequence[str] | None = None) -> dict[str, Json]:
    """Prints the table; returns (and, with --json, writes) the figures and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, help="folder with JPEGs; default: made ones")
    parser.add_argument("--pictures", type=int, default=1000, help="how many")
    parser.add_argument("--size", type=int, default=224, help="side of a crop, pixels")
    parser.add_argument(
        "--area",
        type=float,
        nargs=2,
        default=(0.08, 1.0),
        help="smallest and largest share of the picture that a crop shows",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="for the figures by the clock")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    files = list(pictures(args.folder, args.pictures))
    draws = np.random.default_rng(0).random((len(files), 4)).tolist()
    boxes = [
        crop_box(*Image.open(io.BytesIO(data)).size, tuple(args.area), RATIO, row)
        for data, row in zip(files, draws)
    ]
    ways, missing = installed(files[0])
    decodes = {
        name: lambda i, decode=decode: decode(files[i]) for name, (decode, _) in ways.items()
    }
    crops = {
        name: lambda i, crop=crop: crop(files[i], boxes[i], args.size)
        for name, (_, crop) in ways.items()
    }
    n = len(files)
    base = "Pillow, in two steps"
    decode_us = lowest(decodes, n, args.rounds)
    crop_us = lowest(crops, n, args.rounds)
    rates = by_clock(crops, n, args.rounds, args.threads)
    few = slice(min(n, 50))
    off = {
        name: difference(crop, exact()[1], files[few], boxes[few], args.size)
        for name, (_, crop) in ways.items()
    }
    kilobytes = sum(map(len, files)) / n / 1000
    title = (
        f"{n:,} JPEGs of {kilobytes:.0f} kB, crops of {args.size} px; training's libraries: "
        f"{', '.join(fast_libraries()) or 'none'}"
    )
    table = Table(title=title, title_justify="left")
    for heading in (
        "way",
        "decode, µs",
        "crop, µs",
        "as fast",
        f"crops/s, {args.threads} threads",
        "off",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name in ways:
        speed = f"{crop_us[base] / crop_us[name]:.2f} x"
        table.add_row(
            name,
            f"{decode_us[name]:,.0f}",
            f"{crop_us[name]:,.0f}",
            speed,
            f"{rates[name]:,.0f}",
            f"{off[name]:.2f}",
        )
    console = Console()
    figures = {
        name: {
            "decode_us": decode_us[name],
            "crop_us": crop_us[name],
            "crops_per_second": rates[name],
            "off": off[name],
        }
        for name in ways
    }
    arguments = {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in vars(args).items()
    }
    result = publish(
        console,
        table,
        {"arguments": arguments, "kilobytes": kilobytes, "figures": figures, "missing": missing},
        args.json,
    )
    for name, why in missing.items():
        console.print(f"left out: {name} ({why})", highlight=False)
    return result


def fast_libraries() -> list[str]:
    """Which of the libraries that training uses are installed."""
    libraries = {
        "simplejpeg": fast_pictures.simplejpeg,
        "cykooz-resizer": fast_pictures.cykooz_resizer,
    }
    return [name for name, library in libraries.items() if library is not None]


if __name__ == "__main__":
    main()
