"""Benchmarks as tables of the Hugging Face hub: Parquet, or the Arrow cache.

They are known by their columns:

    Winoground  image_0, image_1, caption_0, caption_1
    WinoGAViL   candidate_images, cue, candidates, associations
    captions    image, caption (a list) and filename: DataComp's COCO and Flickr30k
    classes     image, label (a number whose names the table tells, as `datasets` has it): ImageNet
                and many others
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Callable

import numpy as np

from jaxvl.data.class_sets import ImageNetClasses, imagenet_classes
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Candidates, Found, Side
from jaxvl.evals.benchmarks.files import Values, file_names
from jaxvl.evals.benchmarks.tables import SUFFIXES, Place, TableImages, Tables
from jaxvl.evals.benchmarks.wds import check_labels

LAYOUT = "Hugging Face tables"
_COLUMNS = {
    "winoground": {"image_0", "image_1", "caption_0", "caption_1"},
    "winogavil": {"candidate_images", "cue", "candidates", "associations"},
    "captions": {"image", "caption", "filename"},
    "classes": {"image", "label"},
}
_SPLITS = ("test", "validation", "val", "valid")  # the first that has files is measured
# What a path holds -> the name of a set with captions.
_CAPTIONED = (
    ("flickr_1k", "flickr30k"),
    ("flickr30k", "flickr30k"),
    ("mscoco", "mscoco_captions"),
    ("coco", "mscoco_captions"),
)


def find(folder: pathlib.Path) -> list[Found]:
    files = [folder / name for name in file_names(folder) if name.endswith(SUFFIXES)]
    if not files:
        return []
    chosen = _one_split(files)
    if not chosen:
        raise DataError(
            f"{folder}: {LAYOUT}: holds a training split alone, which no benchmark is measured on"
        )
    names = set(Tables(chosen[:1]).names)
    for kind, columns in _COLUMNS.items():
        if columns <= names:
            name = _NAMES[kind](folder) if kind in _NAMES else kind
            return [Found(name, LAYOUT, folder, functools.partial(_OPEN[kind], chosen, name))]
    return []


def _one_split(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files of the split that is measured, of one format: Arrow files beside Parquet ones are a
    copy of them."""
    parquet = [file for file in files if file.suffix == ".parquet"]
    named = [(set(re.split(r"[-_.]", file.stem.lower())), file) for file in parquet or files]
    for split in _SPLITS:
        chosen = [file for words, file in named if split in words]
        if chosen:
            return chosen
    return [file for words, file in named if "train" not in words]


def _caption_name(folder: pathlib.Path) -> str:
    text = str(folder).lower()
    return next((name for part, name in _CAPTIONED if part in text), folder.name)


def _class_name(folder: pathlib.Path) -> str:
    """The first folder, from here upwards, whose name says more than `data`; ImageNet has its own
    name."""
    name = next(
        part
        for part in [*reversed(folder.parts), folder.name]
        if part not in ("data", "default", "parquet")
    )
    return "imagenet1k" if re.fullmatch(r"imagenet[-_]?(1k)?", name.lower()) else name


def open_classes(files: list[pathlib.Path], name: str) -> Benchmark:
    """Raises DataError where the table does not tell the names of its classes. Of ImageNet, CLIP's
    names are taken."""
    tables = Tables(files)
    folder = files[0].parent
    labels = [
        label if isinstance(label, int) and label >= 0 else None for label in tables.values("label")
    ]
    label_names = _class_labels(tables)
    if not label_names:
        raise DataError(
            f"{folder}: {LAYOUT}: the table does not tell what the numbers in its column "
            f"'label' mean"
        )
    classes = ClassSet({"en": tuple(text.replace("_", " ") for text in label_names)})
    if name == "imagenet1k" and len(label_names) == len(imagenet_classes()):
        classes = ImageNetClasses().load()
    check_labels(labels, len(classes), folder, "the table")
    places = [Place(row, "image") for row in range(len(tables))]
    source = TableImages(
        str(folder), tables, places, {"label": Values(Column("class", classes=classes), labels)}
    )
    held = {"image": "image", "label": "label"}
    return Benchmark(
        name,
        "classification",
        source,
        held,
        MAIN_METRIC["classification"],
        classes,
        pictures=str(folder),
    )


def _class_labels(tables: Tables) -> list[str]:
    """Names of the classes of the column `label`, as `datasets` writes them into the schema; empty
    where it does not."""
    try:
        features = json.loads((tables.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, ValueError, TypeError):
        return []
    return names if isinstance(names, list) and all(isinstance(text, str) for text in names) else []


def open_winoground(files: list[pathlib.Path], name: str) -> Benchmark:
    """Two records for each row: picture 0 with caption 0, picture 1 with caption 1."""
    tables = Tables(files)
    columns = [_texts(tables, f"caption_{i}") for i in (0, 1)]
    places = [Place(row, f"image_{i}") for row in range(len(tables)) for i in (0, 1)]
    captions = [[columns[place.column == "image_1"][place.row]] for place in places]
    values = {
        "captions": Values(Column("texts"), captions),
        "group": Values(Column("int"), np.arange(len(places)) // 2),
    }
    source = TableImages(str(files[0].parent), tables, places, values)
    held = {"image": "image", "captions": "captions", "group": "group"}
    return Benchmark(
        name, "pairs", source, held, MAIN_METRIC["pairs"], pictures=str(files[0].parent)
    )


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
    source = TableImages(
        str(files[0].parent), tables, places, {"captions": Values(Column("texts"), captions)}
    )
    held = {"image": "image", "captions": "captions"}
    return Benchmark(
        name, "retrieval", source, held, MAIN_METRIC["retrieval"], pictures=str(files[0].parent)
    )


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
    return Benchmark(
        name, "candidates", source, {"image": "image"}, main, figures="jaccard", candidates=table
    )


def _with_article(cue: str) -> str:
    """The prompt of WinoGAViL's authors for a cue."""
    text = cue.lower()
    return f"An {text}" if text[:1] in ("a", "e", "i", "o", "u") else f"A {text}"


_OPEN: dict[str, Callable[[list[pathlib.Path], str], Benchmark]] = {
    "winoground": open_winoground,
    "winogavil": open_winogavil,
    "captions": open_captions,
    "classes": open_classes,
}
# What gives a set its name, where its kind does not.
_NAMES = {"captions": _caption_name, "classes": _class_name}
