"""SugarCrepe: a picture of COCO, its caption, and one that is wrong in a detail."""

from __future__ import annotations

import functools
import pathlib

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, bytes_of, json_of
from jaxvl.evals.benchmarks.karpathy import picture_folder

LAYOUT = "SugarCrepe"
KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
_PICTURES = ("val2017", "../val2017", "images", "../coco/val2017", "")


def find(folder: pathlib.Path) -> list[Found]:
    return [
        Found(
            f"sugar_crepe/{kind}",
            LAYOUT,
            folder,
            functools.partial(open_file, folder / f"{kind}.json", kind),
        )
        for kind in KINDS
        if (folder / f"{kind}.json").is_file()
    ]


def open_file(path: pathlib.Path, kind: str) -> Benchmark:
    """Instances in the order of the file, whose keys are numbers with gaps."""
    content = json_of(path)
    files = []
    captions = []
    try:
        for row in content.values():
            files.append(str(row["filename"]))
            captions.append([str(row["caption"]), str(row["negative_caption"])])
    except (AttributeError, KeyError, TypeError) as error:
        what = "objects with filename, caption and negative_caption by key"
        raise DataError(f"{path}: must hold {what} ({type(error).__name__}: {error})") from None
    if not files:
        raise DataError(f"{path}: holds no instance")
    folder = picture_folder(path.parent, files, _PICTURES)
    source = ImageFiles(
        str(path), folder, files, {"captions": Values(Column("texts"), captions)}, bytes_of(path)
    )
    columns = {"image": "image", "captions": "captions"}
    return Benchmark(
        f"sugar_crepe/{kind}",
        "pairs",
        source,
        columns,
        MAIN_METRIC["pairs"],
        pictures=source.pictures,
    )
