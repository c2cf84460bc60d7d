"""ImageNet in folders: one for each WordNet id, or for each number (ImageNet-V2)."""

from __future__ import annotations

import functools
import pathlib
import re

import numpy as np

from jaxvl.data.class_sets import ImageNetClasses, imagenet_classes
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, by_class, subfolders
from jaxvl.evals.benchmarks.imagenet_languages import LanguageClasses, language_classes

LAYOUT = "ImageNet folders"
LAYOUT_V2 = "ImageNet-V2 folders"
_WNID = re.compile(r"n\d{8}")
# What a folder's name holds, in small letters without "-" and "_" -> the set's name in
# CLIP_benchmark, and its classes.
_VARIANTS = (
    (re.compile(r"sketch"), "imagenet_sketch", 1000),
    (re.compile(r"imagenet(a|adversarial)$"), "imagenet-a", 200),
    (re.compile(r"imagenet(o|ood)$"), "imagenet-o", 200),
    (re.compile(r"imagenet(r|renditions?)$"), "imagenet-r", 200),
)
_V2 = re.compile(r"imagenet_?-?v2", re.IGNORECASE)
_SPLITS = ("val", "validation", "test")


def find(folder: pathlib.Path) -> list[Found]:
    """A folder of class folders; a split's folder (`val`) has the name of the one that it lies
    in."""
    names = subfolders(folder)
    if (
        names
        and all(name.isdecimal() and len(name) <= 3 for name in names)
        and _V2.search(str(folder))
    ):
        return [Found(_v2_name(folder), LAYOUT_V2, folder, functools.partial(open_v2, folder))]
    if sum(bool(_WNID.fullmatch(name)) for name in names) <= len(names) / 2:
        return []
    if folder.name == "train":
        raise DataError(
            f"{folder}: {LAYOUT}: is a training split, which no benchmark is measured on"
        )
    name, expected = _variant(folder, len(names))
    found = [Found(name, LAYOUT, folder, functools.partial(open_folder, folder, name, expected))]
    for named in language_classes(folder) if name == "imagenet1k" else ():
        open_it = functools.partial(open_language, folder, named)
        found.append(Found(named.name, LAYOUT, folder, open_it, named.language))
    return found


def _v2_name(folder: pathlib.Path) -> str:
    """CLIP_benchmark's `imagenetv2` is the matched-frequency one; the others are named with it."""
    text = folder.name.lower()
    for variant in ("threshold", "top-images", "topimages"):
        if variant in text:
            return f"imagenetv2-{variant.replace('topimages', 'top-images')}"
    return "imagenetv2"


def _variant(folder: pathlib.Path, classes: int) -> tuple[str, int | None]:
    """Name of the set, and how many classes it has; None: any number."""
    own = folder.parent if folder.name in _SPLITS else folder
    plain = own.name.lower().replace("-", "").replace("_", "")
    for pattern, name, expected in _VARIANTS:
        if pattern.search(plain):
            return name, expected
    if classes == len(imagenet_classes()):
        return "imagenet1k", classes
    return own.name, None


def open_folder(folder: pathlib.Path, name: str, expected: int | None) -> Benchmark:
    """Labels are places among the sorted WordNet ids; the candidates are the classes that have a
    folder.

    Raises DataError where a folder is no class of ImageNet, or a set of a known size has other
    classes.
    """
    wnids = subfolders(folder)
    known = {wnid for wnid, _ in imagenet_classes()}
    strange = [wnid for wnid in wnids if wnid not in known]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise DataError(f"{folder}: {strange[0]!r}{more} is no class of ImageNet, as n01440764")
    if expected is not None and len(wnids) != expected:
        raise DataError(f"{folder}: has {len(wnids)} class folders; {name} has {expected}")
    classes = ImageNetClasses(tuple(wnids)).load()
    notes = (
        ()
        if expected is not None
        else (f"{len(wnids)} of the 1,000 classes of ImageNet, which are all candidates",)
    )
    return _benchmark(folder, name, wnids, list(range(len(wnids))), classes, notes)


def open_language(folder: pathlib.Path, named: LanguageClasses) -> Benchmark:
    """ImageNet with the names and prompts of another language. Pictures of classes without a name
    there have no label."""
    classes, numbers = named.load()
    english = open_folder(folder, "imagenet1k", len(imagenet_classes()))
    place = {number: i for i, number in enumerate(numbers)}
    labels = [place.get(label) for label in english.source.column("label").tolist()]
    values = {"label": Values(Column("class", optional=True, classes=classes), labels)}
    files, _ = by_class(folder, subfolders(folder))
    source = ImageFiles(
        str(folder), folder, files, values, repr((named.language, numbers)).encode()
    )
    cause = f"class without a name in {named.language}"
    columns = {"image": "image", "label": "label"}
    main = MAIN_METRIC["classification"]
    return Benchmark(
        named.name,
        "classification",
        source,
        columns,
        main,
        classes,
        named.language,
        pictures=source.pictures,
        no_label=cause,
    )


def open_v2(folder: pathlib.Path) -> Benchmark:
    """A folder's name is its label as a number: `10` is label 10, wherever it would be among sorted
    texts.

    Raises DataError where one of the 1,000 is missing.
    """
    names = sorted(subfolders(folder), key=int)
    numbers = [int(name) for name in names]
    total = len(imagenet_classes())
    if numbers != list(range(total)):
        raise DataError(
            f"{folder}: has {len(names)} class folders; {_v2_name(folder)} has {total}, "
            f"numbered from 0"
        )
    return _benchmark(folder, _v2_name(folder), names, numbers, ImageNetClasses().load(), ())


def _benchmark(
    folder: pathlib.Path,
    name: str,
    folders: list[str],
    numbers: list[int],
    classes: ClassSet,
    notes: tuple[str, ...],
) -> Benchmark:
    """`numbers`: label of each of the class folders."""
    files, places = by_class(folder, folders)
    if not files:
        raise DataError(f"{folder}: holds no picture")
    labels = np.array(numbers, np.int64)[places]
    source = ImageFiles(
        str(folder), folder, files, {"label": Values(Column("class", classes=classes), labels)}
    )
    columns = {"image": "image", "label": "label"}
    task = "classification"
    return Benchmark(
        name,
        task,
        source,
        columns,
        MAIN_METRIC[task],
        classes,
        pictures=source.pictures,
        notes=notes,
    )
