"""A gallery as one picture, for TensorBoard."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxvl.evals.result import GalleryRow
from jaxvl.evals.shown import brief

MOST = 120  # characters of a caption that are measured: more than two lines hold
# pixels: a picture's side, the height of its caption, the space between cells
CELL = 64
TEXT = 28
GAP = 14
RIGHT = (22, 128, 60)
WRONG = (190, 40, 40)
INK = (30, 30, 30)
PAPER = (255, 255, 255)


def sheet(gallery: Sequence[GalleryRow]) -> np.ndarray:
    """uint8 [H, W, 3]: a line per query, the query first; right answers in a double green frame,
    wrong ones in a red one."""
    columns = 1 + max((len(row.items) for row in gallery), default=0)
    width = CELL * 2 + GAP
    height = CELL + TEXT + GAP
    picture = Image.new("RGB", (columns * width + GAP, max(1, len(gallery)) * height + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(
        str(pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 11
    )
    for r, row in enumerate(gallery):
        cells = [
            (row.text, row.image, None),
            *(
                (f"{item.score:.2f} {brief(item.text, MOST)}", item.image, item.right)
                for item in row.items
            ),
        ]
        for c, (text, image, right) in enumerate(cells):
            _cell(picture, draw, font, (GAP + c * width, GAP + r * height), text, image, right)
    return np.asarray(picture)


def _cell(picture, draw, font, corner, text, image, right) -> None:
    x, y = corner
    if image is not None:
        picture.paste(
            Image.open(io.BytesIO(image)).convert("RGB").resize((CELL, CELL)), (x + CELL // 2, y)
        )
    draw.multiline_text(
        (x, y + CELL if image is not None else y + CELL // 2),
        _wrap(text, font, 2 * CELL),
        fill=INK,
        font=font,
        spacing=1,
    )
    if right is not None:
        box = (x - 3, y - 3, x + 2 * CELL + 2, y + CELL + TEXT)
        draw.rectangle(box, outline=RIGHT if right else WRONG)
        if right:
            draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), outline=RIGHT)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """At most two lines of `width` pixels, cut where it is longer. No more than `MOST` characters
    are looked at."""
    lines: list[str] = []
    line = ""
    for word in brief(text, MOST).split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return "\n".join(_fit(part, font, width) for part in [*lines, line][:2])


def _fit(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A line, or as much of its beginning as fits with … after it, found by halving."""
    if font.getlength(line) <= width:
        return line
    # characters that fit, and that do not
    fits = 0
    long = len(line)
    while long - fits > 1:
        middle = (fits + long) // 2
        if font.getlength(line[:middle].rstrip() + "…") <= width:
            fits = middle
        else:
            long = middle
    return line[:fits].rstrip() + "…"
