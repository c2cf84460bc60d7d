"""Benchmarks as tables of the Hugging Face hub, as downloaded (Parquet) or as `datasets` caches them (Arrow).

They are known by their columns:

    Winoground  image_0, image_1, caption_0, caption_1
    WinoGAViL   candidate_images, cue, candidates, associations
    captions    image, caption (a list) and filename: DataComp's COCO and Flickr30k
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Candidates, Found, Side
from jaxvl.evals.benchmarks.files import Values, file_names
from jaxvl.evals.benchmarks.tables import SUFFIXES, Place, TableImages, Tables

LAYOUT = "Hugging Face tables"
_COLUMNS = {
    "winoground": {"image_0", "image_1", "caption_0", "caption_1"},
    "winogavil": {"candidate_images", "cue", "candidates", "associations"},
    "captions": {"image", "caption", "filename"},
}
_TEST = re.compile(r"(^|[-_.])test([-_.]|$)")
# What a path holds -> the name of a set with captions.
_CAPTIONED = (("flickr_1k", "flickr30k"), ("flickr30k", "flickr30k"), ("mscoco", "mscoco_captions"), ("coco", "mscoco_captions"))


def find(folder: pathlib.Path) -> list[Found]:
    files = [folder / name for name in file_names(folder) if name.endswith(SUFFIXES)]
    if not files:
        return []
    tests = [file for file in files if _TEST.search(file.stem.lower())]
    chosen = _split(folder, tests or files)
    names = set(Tables(chosen[:1]).names)
    for kind, columns in _COLUMNS.items():
        if columns <= names:
            open_it = _OPEN[kind]
            name = _caption_name(folder) if kind == "captions" else kind
            return [Found(name, LAYOUT, folder, functools.partial(open_it, chosen, name))]
    return []


def _split(folder: pathlib.Path, files: list[pathlib.Path]) -> list[pathlib.Path]:
    """Those of one kind: Arrow files beside Parquet ones are a copy of them."""
    parquet = [file for file in files if file.suffix == ".parquet"]
    return parquet or files


def _caption_name(folder: pathlib.Path) -> str:
    text = str(folder).lower()
    return next((name for part, name in _CAPTIONED if part in text), folder.name)


def open_winoground(files: list[pathlib.Path], name: str) -> Benchmark:
    """Two records for each row: picture 0 with caption 0, picture 1 with caption 1."""
    tables = Tables(files)
    columns = [_texts(tables, f"caption_{i}") for i in (0, 1)]
    places = [Place(row, f"image_{i}") for row in range(len(tables)) for i in (0, 1)]
    captions = [[columns[place.column == "image_1"][place.row]] for place in places]
    values = {"captions": Values(Column("texts"), captions), "group": Values(Column("int"), np.arange(len(places)) // 2)}
    source = TableImages(str(files[0].parent), tables, places, values)
    held = {"image": "image", "captions": "captions", "group": "group"}
    return Benchmark(name, "pairs", source, held, MAIN_METRIC["pairs"], pictures=str(files[0].parent))


def _texts(tables: Tables, name: str) -> list[str]:
    values = tables.values(name)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{tables.files[0].parent}: row {row} has no text in {name!r}")
    return values


def _lists(tables: Tables, name: str) -> list[list[str]]:
    values = tables.values(name)
    for row, value in enumerate(values):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise DataError(f"{tables.files[0].parent}: row {row} has no list of texts in {name!r}")
    return values


def open_captions(files: list[pathlib.Path], name: str) -> Benchmark:
    tables = Tables(files)
    captions = _lists(tables, "caption")
    places = [Place(row, "image") for row in range(len(tables))]
    source = TableImages(str(files[0].parent), tables, places, {"captions": Values(Column("texts"), captions)})
    held = {"image": "image", "captions": "captions"}
    return Benchmark(name, "retrieval", source, held, MAIN_METRIC["retrieval"], pictures=str(files[0].parent))


def open_winogavil(files: list[pathlib.Path], name: str) -> Benchmark:
    """For each cue, which of 5 to 12 pictures go with it, when it is known how many do."""
    tables = Tables(files)
    cues = _texts(tables, "cue")
    candidates = _lists(tables, "candidates")
    associations = _lists(tables, "associations")
    places = []
    sides = []
    queries = []
    chosen = []
    right = []
    for row, cue in enumerate(cues):
        queries.append(len(sides))
        sides.append(Side(text=_with_article(cue)))
        chosen.append(np.arange(len(sides), len(sides) + len(candidates[row])))
        right.append(np.isin(candidates[row], associations[row]))
        for item in range(len(candidates[row])):
            sides.append(Side(image=len(places)))
            places.append(Place(row, "candidate_images", item))
    source = TableImages(str(files[0].parent), tables, places)
    table = Candidates(tuple(sides), np.array(queries, np.int64), tuple(chosen), tuple(right))
    main = "jaccard_score_10-12"
    return Benchmark(name, "candidates", source, {"image": "image"}, main, figures="jaccard", candidates=table)


def _with_article(cue: str) -> str:
    """The prompt of WinoGAViL's authors for a cue."""
    text = cue.lower()
    return f"An {text}" if text[:1] in ("a", "e", "i", "o", "u") else f"A {text}"


_OPEN: dict[str, Callable[[list[pathlib.Path], str], Benchmark]] = {
    "winoground": open_winoground,
    "winogavil": open_winogavil,
    "captions": open_captions,
}
