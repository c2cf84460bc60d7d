"""ObjectNet: its 113 classes that are also in ImageNet, as CLIP_benchmark takes them."""

from __future__ import annotations

import functools
import pathlib

from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, by_class, json_of, subfolders

LAYOUT = "ObjectNet"
_FOLDERS = "folder_to_objectnet_label.json"  # folder -> ObjectNet's name
_SHARED = "objectnet_to_imagenet_1k.json"  # ObjectNet's name -> ImageNet's names, joined by "; "


def find(folder: pathlib.Path) -> list[Found]:
    """Raises DataError where the pictures are there and the mappings are not."""
    images = next(
        (
            place
            for place in (folder / "objectnet-1.0" / "images", folder / "images")
            if place.is_dir()
        ),
        None,
    )
    if images is None or "objectnet" not in str(images).lower():
        return []
    mappings = next(
        (
            place
            for place in (folder, folder / "mappings", images.parent / "mappings")
            if (place / _FOLDERS).is_file()
        ),
        None,
    )
    if mappings is None or not (mappings / _SHARED).is_file():
        raise DataError(
            f"{folder}: {LAYOUT}: {_FOLDERS} and {_SHARED} of its folder mappings are missing"
        )
    return [Found("objectnet", LAYOUT, folder, functools.partial(open_folder, images, mappings))]


def open_folder(images: pathlib.Path, mappings: pathlib.Path) -> Benchmark:
    """Labels are places among the sorted names of the class folders. Pictures keep their red border
    of one pixel."""
    name_of = _texts(mappings / _FOLDERS)
    shared = _texts(mappings / _SHARED)
    there = set(subfolders(images))
    folders = sorted(folder for folder, name in name_of.items() if name in shared)
    missing = [folder for folder in folders if folder not in there]
    if missing or not folders:
        what = (
            f"the class folder {missing[0]!r} is missing"
            if missing
            else "no class of the mappings is in ImageNet"
        )
        raise DataError(f"{images}: {what}")
    files, labels = by_class(images, folders)
    if not files:
        raise DataError(f"{images}: holds no picture")
    classes = ClassSet({"en": tuple(name_of[folder].lower() for folder in folders)})
    source = ImageFiles(
        str(images), images, files, {"label": Values(Column("class", classes=classes), labels)}
    )
    columns = {"image": "image", "label": "label"}
    return Benchmark(
        "objectnet",
        "classification",
        source,
        columns,
        MAIN_METRIC["classification"],
        classes,
        pictures=source.pictures,
    )


def _texts(path: pathlib.Path) -> dict[str, str]:
    content = json_of(path)
    if not isinstance(content, dict) or not all(
        isinstance(value, str) for value in content.values()
    ):
        raise DataError(f"{path}: must hold texts by text")
    return content
