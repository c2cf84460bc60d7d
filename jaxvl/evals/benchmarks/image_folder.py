"""A folder for each class, as torchvision's ImageFolder reads it: VTAB's and other small sets.

Class names are, in this order: `classnames.txt` in the folder or the one above, line i for the i-th
folder; the list of that set in CLIP_benchmark's `en_classnames.json`, where that lies above; the
folders' names with `_` as a space. Folders that are numbered are in the order of their numbers, in
which torchvision would have 10 before 2; they need one of the lists.
"""

from __future__ import annotations

import functools
import pathlib

from jaxvl.data.class_sets import read_names, read_templates, to_template
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import (
    ImageFiles,
    Values,
    by_class,
    file_above,
    file_names,
    is_picture,
    json_of,
    subfolders,
    texts_in,
)

LAYOUT = "a folder for each class"
_SPLITS = ("test", "val", "validation", "valid")
_PLAIN = (*_SPLITS, "images", "Images", "data")  # names of folders that name no set
_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_LISTED_NAMES = "en_classnames.json"
_LISTED_TEMPLATES = "en_zeroshot_classification_templates.json"


def find(folder: pathlib.Path) -> list[Found]:
    """A folder of at least two folders, most of which hold pictures."""
    names = subfolders(folder)
    if len(names) < 2 or any(name in ("train", *_SPLITS) for name in names):
        return []
    asked = names[:8]
    holding = sum(any(is_picture(file) for file in file_names(folder / name)) for name in asked)
    if holding <= len(asked) / 2:
        return []
    if folder.name == "train":
        raise DataError(
            f"{folder}: {LAYOUT}: is a training split, which no benchmark is measured on"
        )
    name = next(part for part in [*reversed(folder.parts), folder.name] if part not in _PLAIN)
    return [Found(name, LAYOUT, folder, functools.partial(open_folder, folder, name))]


def open_folder(folder: pathlib.Path, name: str) -> Benchmark:
    """Labels are places among the sorted folders. Raises DataError where a folder is empty, or
    names are missing or do not fit."""
    folders = subfolders(folder)
    if _numbered(folders):
        folders.sort(key=int)
    files, labels = by_class(folder, folders)
    empty = sorted(set(range(len(folders))) - set(labels.tolist()))
    if empty:
        raise DataError(
            f"{folder}: the class folder {folders[empty[0]]!r} holds no picture, so it is not "
            f"clear what the classes are"
        )
    classes = ClassSet({"en": _names(folder, name, folders)}, _templates(folder, name))
    source = ImageFiles(
        str(folder), folder, files, {"label": Values(Column("class", classes=classes), labels)}
    )
    columns = {"image": "image", "label": "label"}
    return Benchmark(
        name,
        "classification",
        source,
        columns,
        MAIN_METRIC["classification"],
        classes,
        pictures=source.pictures,
    )


def _names(folder: pathlib.Path, name: str, folders: list[str]) -> tuple[str, ...]:
    for path in (folder / _NAMES, folder.parent / _NAMES):
        if path.is_file():
            names = _read(read_names, path)
            if len(names) != len(folders):
                raise DataError(
                    f"{path}: names {len(names)} classes, but {folder} has {len(folders)} folders"
                )
            return names
    listed = _listed(folder, _LISTED_NAMES, name)
    if listed is not None and len(listed) == len(folders):
        return tuple(listed)
    if _numbered(folders):
        raise DataError(
            f"{folder}: the class folders are numbers, as {folders[0]!r}; {_NAMES} must name "
            f"the classes, in their order (ImageNet-V2 is known by its folder's name)"
        )
    return tuple(text.replace("_", " ") for text in folders)


def _numbered(folders: list[str]) -> bool:
    return all(name.isdecimal() for name in folders)


def _templates(folder: pathlib.Path, name: str) -> tuple[str, ...]:
    for path in (folder / _TEMPLATES, folder.parent / _TEMPLATES):
        if path.is_file():
            return _read(read_templates, path)
    return tuple(to_template(text) for text in _listed(folder, _LISTED_TEMPLATES, name) or ())


def _listed(folder: pathlib.Path, file: str, name: str) -> list[str] | None:
    """The list of a set in CLIP_benchmark's JSON of all sets, in a folder above."""
    path = file_above(folder, file)
    content = json_of(path) if path is not None else None
    listed = content.get(name) if isinstance(content, dict) else None
    return None if listed is None else texts_in(listed, f"{path}: {name!r}")


def _read(read, path: pathlib.Path) -> tuple[str, ...]:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from None
