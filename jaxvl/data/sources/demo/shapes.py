"""A generated corpus for tests: counted, coloured shapes in five drawing styles.

A concept is a colour, a shape and a count ("three green stars"), named in English, German and
French. The splits mean the same as those of the emoji corpus: style `sketch` is never in training,
and split B holds out concepts besides. With `clips` the shapes turn in short videos, and every name
has a sound as well: as many notes as shapes, pitched by colour, with overtones by shape, in the
register of its language.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw

from jaxvl.config import Range, Seed, check
from jaxvl.data import clips
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo.recipe import Recipe
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus

VERSION = 2
STYLES = ("filled", "outlined", "shaded", "soft", "sketch")
UNSEEN = "sketch"
COUNTS = {
    "en": ("one", "two", "three"),
    "de": ("ein", "zwei", "drei"),
    "fr": ("un", "deux", "trois"),
}

# Colour -> RGB, English, German stem, French (masculine, feminine, plural masculine, plural
# feminine).
COLOURS = {
    "red": ((214, 40, 40), "rot", ("rouge", "rouge", "rouges", "rouges")),
    "green": ((46, 160, 67), "grün", ("vert", "verte", "verts", "vertes")),
    "blue": ((33, 102, 220), "blau", ("bleu", "bleue", "bleus", "bleues")),
    "yellow": ((245, 200, 40), "gelb", ("jaune", "jaune", "jaunes", "jaunes")),
    "black": ((30, 30, 30), "schwarz", ("noir", "noire", "noirs", "noires")),
    "grey": ((140, 140, 140), "grau", ("gris", "grise", "gris", "grises")),
}
# Shape -> English plural, (German singular, plural, gender), (French singular, plural, gender).
SHAPES = {
    "circle": ("circles", ("Kreis", "Kreise", "m"), ("cercle", "cercles", "m")),
    "square": ("squares", ("Quadrat", "Quadrate", "n"), ("carré", "carrés", "m")),
    "triangle": ("triangles", ("Dreieck", "Dreiecke", "n"), ("triangle", "triangles", "m")),
    "star": ("stars", ("Stern", "Sterne", "m"), ("étoile", "étoiles", "f")),
    "cross": ("crosses", ("Kreuz", "Kreuze", "n"), ("croix", "croix", "f")),
    "ring": ("rings", ("Ring", "Ringe", "m"), ("anneau", "anneaux", "m")),
    "hexagon": ("hexagons", ("Sechseck", "Sechsecke", "n"), ("hexagone", "hexagones", "m")),
    "arrow": ("arrows", ("Pfeil", "Pfeile", "m"), ("flèche", "flèches", "f")),
}
Concept = tuple[str, str, int]  # colour, shape, count
FRAMES = 8
NOTE = 2133  # samples of one note


@SOURCES.register("shapes")
@dataclasses.dataclass(frozen=True)
class Shapes(Recipe):
    """See the module's text.

    Attributes:
      size: side of the pictures in pixels.
      variants: pictures of each concept in each style.
      seed: of places and angles.
      clips: records have `frames` and `audio` as well, which needs jaxvl[audio].
    """

    size: int = 48
    variants: Annotated[int, Range(1, 10_000)] = 4
    seed: Seed = 0
    clips: bool = False

    def __post_init__(self):
        check(8 <= self.size <= 512, "size", f"{self.size!r} must be in 8 … 512 pixels")
        check(self.variants >= 1, "variants", f"{self.variants!r} must be >= 1")

    def prepare(self, log: Callable[[str], None] = print) -> Corpus:
        """The corpus, generated if it is not in the cache (seconds)."""
        name = f"shapes-v{VERSION}-{self.size}-{self.variants}-{self.seed}" + "-clips" * self.clips
        if self.clips:
            clips.require()
        return build_once(name, functools.partial(build, config=self), log)


def build(folder: pathlib.Path, config: Shapes) -> dict[str, int]:
    """Writes the corpus into `folder`; returns its counts."""
    concepts = list(itertools.product(COLOURS, SHAPES, (1, 2, 3)))
    order = [
        (style, label, v)
        for style in STYLES
        for label in range(len(concepts))
        for v in range(config.variants)
    ]
    captions = [names(c) for c in concepts]

    def records() -> Iterator[dict[str, Any]]:
        for number, (style, label, v) in enumerate(order):
            concept = concepts[label]
            rng = lambda n=number: np.random.Generator(np.random.Philox(key=[config.seed, n]))
            image = draw(concept, style, config.size, rng())
            texts = {
                locale: [text, list(concepts[label][:2]) if locale == "en" else []]
                for locale, text in captions[label].items()
            }
            more = {}
            if config.clips:
                frames = [
                    draw(concept, style, config.size, rng(), k / FRAMES) for k in range(FRAMES)
                ]
                more = {
                    "frames": frames,
                    "audio": {
                        "speech": {
                            locale: clips.to_flac(play(concept, locale, rng())) for locale in COUNTS
                        }
                    },
                }
            yield {
                "key": f"{style}/{label}/{v}",
                "image": image,
                "label": label,
                "style": style,
                "captions": texts,
                **more,
            }

    held = {
        i
        for i, c in enumerate(captions)
        if int(hashlib.sha1(c["en"].encode()).hexdigest(), 16) % 100 < 15
    }
    where = lambda test: np.array(
        [i for i, (style, label, _) in enumerate(order) if test(style, label)], np.int32
    )
    splits = {
        "train_a": where(lambda s, _: s != UNSEEN),
        "test_a": where(lambda s, _: s == UNSEEN),
        "train_b": where(lambda s, c: s != UNSEEN and c not in held),
        "test_b_new": where(lambda s, c: s == UNSEEN and c in held),
        "test_b_seen": where(lambda s, c: s == UNSEEN and c not in held),
        "test_b_train_styles": where(lambda s, c: s != UNSEEN and c in held),
    }
    labels = np.array([label for _, label, _ in order], np.int32)
    classes = {locale: [c[locale] for c in captions] for locale in COUNTS}
    attributes = {
        name: [str(c[i]) for c in concepts] for i, name in enumerate(("colour", "shape", "count"))
    }
    things = (
        ("frames", "speech", *(f"speech/{locale}" for locale in COUNTS)) if config.clips else ()
    )
    present = {thing: np.ones(len(order), bool) for thing in things}
    return write_corpus(
        folder,
        records(),
        labels,
        splits,
        classes,
        "# Attribution\n\nGenerated by jaxvl.\n",
        attributes,
        present,
    )


def names(concept: Concept) -> dict[str, str]:
    """Language -> name, with articles and endings as they should be."""
    colour, shape, count = concept
    plural, (de_one, de_many, de_gender), (fr_one, fr_many, fr_gender) = SHAPES[shape]
    _, stem, french = COLOURS[colour]
    many = count > 1
    feminine = fr_gender == "f"
    ending = "er" if de_gender == "m" else "es"
    german = f"ein {stem}{ending} {de_one}"
    if many:
        german = f"{COUNTS['de'][count - 1]} {stem}e {de_many}"
    number = "une" if feminine and not many else COUNTS["fr"][count - 1]
    return {
        "en": f"{COUNTS['en'][count - 1]} {colour} {plural if many else shape}",
        "de": german,
        "fr": f"{number} {fr_many if many else fr_one} {french[2 * many + feminine]}",
    }


def play(concept: Concept, locale: str, rng: np.random.Generator) -> np.ndarray:
    """The sound of a name: float [6399], 0.4 seconds at 16 kHz."""
    colour, shape, count = concept
    pitch = 160 * 2 ** (
        (list(COLOURS).index(colour) + rng.normal(0, 0.05)) / 4 + list(COUNTS).index(locale) / 12
    )
    time = np.arange(NOTE) / clips.RATE
    overtones = [(1, 1.0), (2 + list(SHAPES).index(shape), 0.8)]
    note = sum(
        loud * np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) for k, loud in overtones
    ) * np.sin(np.pi * time * clips.RATE / NOTE)
    out = rng.normal(0, 0.005, 3 * NOTE)
    out[: count * NOTE] += 0.3 * np.tile(note, count)
    return out


def draw(
    concept: Concept, style: str, size: int, rng: np.random.Generator, moment: float = 0.0
) -> bytes:
    """A picture as PNG bytes, RGBA on transparency; `moment` in 0..1 of a video in which the shapes
    turn by a quarter."""
    colour, shape, count = concept
    big = 4 * size  # drawn large and scaled down, for smooth edges
    image = Image.new("RGBA", (big, big))
    pen = ImageDraw.Draw(image)
    rgb = COLOURS[colour][0]
    radius = big * (0.34, 0.21, 0.19)[count - 1] * rng.uniform(0.85, 1.0)
    places = ([(0.5, 0.5)], [(0.28, 0.5), (0.72, 0.5)], [(0.5, 0.28), (0.28, 0.72), (0.72, 0.72)])[
        count - 1
    ]
    for x, y in places:
        centre = (big * (x + rng.uniform(-0.03, 0.03)), big * (y + rng.uniform(-0.03, 0.03)))
        paint(
            pen,
            outline(shape, centre, radius, rng.uniform(-0.15, 0.15) + moment * math.pi / 2),
            shape,
            centre,
            radius,
            rgb,
            style,
            rng,
        )
    out = io.BytesIO()
    image.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA").save(
        out, "PNG"
    )
    return out.getvalue()


def outline(
    shape: str, centre: tuple[float, float], radius: float, turn: float
) -> list[tuple[float, float]]:
    """Corners of a shape."""
    if shape in ("circle", "ring", "hexagon", "triangle", "square"):
        n = {"circle": 48, "ring": 48, "hexagon": 6, "triangle": 3, "square": 4}[shape]
        start = math.pi / 4 if shape == "square" else -math.pi / 2
        points = [
            (math.cos(start + 2 * math.pi * i / n), math.sin(start + 2 * math.pi * i / n))
            for i in range(n)
        ]
    elif shape == "star":
        points = [
            (
                (1, 0.42)[i % 2] * math.sin(math.pi * i / 5),
                -(1, 0.42)[i % 2] * math.cos(math.pi * i / 5),
            )
            for i in range(10)
        ]
    elif shape == "cross":
        a = 0.34
        points = [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    else:
        points = [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
    cos = math.cos(turn)
    sin = math.sin(turn)
    return [
        (centre[0] + radius * (x * cos - y * sin), centre[1] + radius * (x * sin + y * cos))
        for x, y in points
    ]


def paint(
    pen: ImageDraw.ImageDraw,
    points,
    shape: str,
    centre,
    radius: float,
    rgb,
    style: str,
    rng: np.random.Generator,
) -> None:
    """One shape in one style; a ring is a circle with a hole."""
    width = max(2, round(radius * 0.1))
    inner = outline("circle", centre, radius * 0.55, 0.0) if shape == "ring" else None
    dark = tuple(c // 2 for c in rgb)
    if style == "sketch":  # loose dark strokes over a pale wash
        pen.polygon(points, fill=(*(128 + c // 2 for c in rgb), 255))
        if inner:
            pen.polygon(inner, fill=(0, 0, 0, 0))
        for ring in filter(None, (points, inner)):
            for _ in range(2):
                loose = [
                    (x + rng.normal(0, radius * 0.03), y + rng.normal(0, radius * 0.03))
                    for x, y in ring
                ]
                pen.line([*loose, loose[0]], fill=(20, 20, 20, 255), width=width, joint="curve")
        return
    if style == "soft":
        for i in range(6, 0, -1):
            grown = [
                (
                    centre[0] + (x - centre[0]) * (0.7 + 0.05 * i),
                    centre[1] + (y - centre[1]) * (0.7 + 0.05 * i),
                )
                for x, y in points
            ]
            pen.polygon(grown, fill=(*rgb, 255 - 30 * i))
    elif style == "outlined":
        pen.line([*points, points[0]], fill=(*rgb, 255), width=2 * width, joint="curve")
    else:
        pen.polygon(points, fill=(*rgb, 255))
    if style == "shaded":
        pen.line([*points, points[0]], fill=(*dark, 255), width=width, joint="curve")
    if inner:
        pen.polygon(inner, fill=(0, 0, 0, 0))
        if style == "outlined":
            pen.line([*inner, inner[0]], fill=(*rgb, 255), width=2 * width, joint="curve")
