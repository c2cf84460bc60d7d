"""Folders of tars as CLIP_benchmark's webdataset builder and DataComp write them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxvl.data.class_sets import read_names, read_templates
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column, Source
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found, Task
from jaxvl.evals.benchmarks.files import lines_of
from jaxvl.evals.benchmarks.tars import Member, open_shards, split_captions

LAYOUT = "CLIP_benchmark wds"
# Folder names have "-" for "/"; these begin names in which it was one.
_GROUPS = ("vtab", "wilds", "fairness", "retrieval", "misc", "sugar_crepe")
# Set -> DataComp's main metric, where it is no plain accuracy.
_MAIN = {
    "vtab/caltech101": "mean_per_class_recall",
    "fgvc_aircraft": "mean_per_class_recall",
    "vtab/flowers": "mean_per_class_recall",
    "vtab/pets": "mean_per_class_recall",
    "wilds/iwildcam": "F1-macro_all",
    "wilds/fmow": "acc_worst_region",
    "dollar_street": "acc_top5_wg",
    "fairness/dollar_street": "acc_top5_wg",
    "geode": "acc_wg",
    "fairness/geode": "acc_wg",
}
# Set -> what is measured beside accuracy, where DataComp measures more.
_FIGURES = {name: metric for name, metric in _MAIN.items() if metric != "mean_per_class_recall"}
_SEVERAL = ("fairface", "utkface")  # sets that ask several questions of one image


def find(folder: pathlib.Path) -> list[Found]:
    """Raises DataError where it has shards without `test/nshards.txt`."""
    if not (folder / "test" / "nshards.txt").is_file():
        if (folder / "test" / "0.tar").is_file():
            raise DataError(
                f"{folder}: {LAYOUT}: has test/0.tar, but test/nshards.txt, which says how "
                f"many there are, is missing"
            )
        return []
    name = name_of(folder.name)
    return [Found(f"wds/{name}", LAYOUT, folder, functools.partial(open_folder, folder, name))]


def name_of(folder: str) -> str:
    """Name of the set: `wds_vtab-cifar10` (CLIP_benchmark) and `wds_vtab-cifar10_test` (DataComp)
    are `vtab/cifar10`."""
    name = folder.removeprefix("wds_").removesuffix("_test")
    group, dash, rest = name.partition("-")
    return f"{group}/{rest}" if dash and group in _GROUPS else name


def open_folder(folder: pathlib.Path, name: str, split: str = "test") -> Benchmark:
    """Raises DataError where a file is missing or does not hold what it should."""
    if name.rpartition("/")[2] in _SEVERAL:
        raise DataError(
            f"{folder}: {name} asks several questions of each image, which is not supported"
        )
    task = _task(folder)
    files = [folder / split / f"{i}.tar" for i in range(_shards(folder / split / "nshards.txt"))]
    if task == "retrieval":
        captions = Member("txt", Column("texts"), split_captions)
        source = open_shards(str(folder), files, {"captions": captions})
        columns = {"image": "image", "captions": "captions"}
        return Benchmark(
            f"wds/{name}", task, source, columns, MAIN_METRIC[task], pictures=str(folder)
        )
    classes = _classes(folder)
    if task == "multilabel":
        source = open_shards(str(folder), files, {"labels": Member("npy", Column("array"))})
        _check_vectors(source, len(classes), folder)
        columns = {"image": "image", "labels": "labels"}
        return Benchmark(
            f"wds/{name}", task, source, columns, MAIN_METRIC[task], classes, pictures=str(folder)
        )
    members = {"label": Member("cls", Column("class", classes=classes))}
    if name in _FIGURES:
        members["metadata"] = Member("npy", Column("array"))
    source = open_shards(str(folder), files, members)
    check_labels(source.column("label"), len(classes), folder)
    main = _MAIN.get(name, MAIN_METRIC[task])
    columns = {"image": "image", **{key: key for key in members}}
    return Benchmark(
        f"wds/{name}",
        task,
        source,
        columns,
        main,
        classes,
        figures=_FIGURES.get(name),
        pictures=str(folder),
    )


def _task(folder: pathlib.Path) -> Task:
    path = folder / "dataset_type.txt"
    if not path.is_file():
        return "classification"
    text = "\n".join(lines_of(path)).strip().lower()
    if text not in ("classification", "multilabel", "retrieval"):
        raise DataError(f"{path}: {text[:40]!r} must be classification, multilabel or retrieval")
    return text


def _shards(path: pathlib.Path) -> int:
    text = "\n".join(lines_of(path)).strip()
    if not text.isdecimal() or not 1 <= len(text) <= 6 or int(text) < 1:
        raise DataError(f"{path}: {text[:40]!r} must be the number of shards")
    return int(text)


def _classes(folder: pathlib.Path) -> ClassSet:
    names = folder / "classnames.txt"
    if not names.is_file():
        raise DataError(f"{names}: is missing; classification needs it")
    templates = folder / "zeroshot_classification_templates.txt"
    try:
        return ClassSet(
            {"en": read_names(names)}, read_templates(templates) if templates.is_file() else ()
        )
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from None


def check_labels(
    labels: Sequence[int | None] | np.ndarray,
    classes: int,
    folder: pathlib.Path,
    names: str = "classnames.txt",
) -> None:
    """Raises DataError where no record has a label, or one has a label without a name; `names`:
    what holds the names."""
    known = np.array([label for label in labels if label is not None], np.int64)
    if not len(known):
        raise DataError(f"{folder}: no record has a label")
    if known.min() < 0 or known.max() >= classes:
        worst = int(known.max() if known.max() >= classes else known.min())
        raise DataError(
            f"{folder}: label {worst} has no name; {names} names {classes} classes, from 0"
        )


def _check_vectors(source: Source, classes: int, folder: pathlib.Path) -> None:
    for i, value in enumerate(source.column("labels")):
        if value is not None and value.shape != (classes,):
            raise DataError(
                f"{folder}: record {i} has labels of shape {value.shape}; must be "
                f"({classes},), as classnames.txt has names"
            )
