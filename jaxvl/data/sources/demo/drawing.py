"""Pictures of any kind drawn at one size, for corpora to store."""

from __future__ import annotations

import io
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor

from PIL import Image


def workers() -> Executor:
    """Processes that draw. Not forked: this process may already run JAX's threads."""
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def draw(picture: str, size: int) -> bytes:
    """An SVG text, or a picture file's path, as PNG bytes, RGBA, `size` x `size` (the longer side;
    centred on transparency).

    Raises ValueError for an SVG that cannot be drawn, OSError for a file that is no picture.
    """
    if picture.startswith("<"):
        import resvg_py  # of jaxvl[demo]; needed to build a corpus, not to read it

        # Without `dpi` a width in points or millimetres would be no width at all; fonts would make
        # machines differ.
        data = resvg_py.svg_to_bytes(svg_string=picture, width=size, dpi=96, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(data)))
    else:
        image = Image.open(picture)
    out = io.BytesIO()
    framed(image, size).save(out, "PNG")
    return out.getvalue()


def framed(image: Image.Image, size: int) -> Image.Image:
    """A picture as RGBA, its longer side scaled to `size`, centred on a transparent square."""
    image = image.convert("RGBA").convert(
        "RGBa"
    )  # premultiplied, so that no hidden colour bleeds into edges
    if max(image.size) != size:
        image = image.resize(
            tuple(max(1, round(n * size / max(image.size))) for n in image.size),
            Image.Resampling.LANCZOS,
        )
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(image, tuple((size - n) // 2 for n in image.size))
    return canvas.convert("RGBA")
