"""MMVP-VLM: pairs of pictures that CLIP takes for one another, and a statement for each."""

from __future__ import annotations

import csv
import functools
import io
import pathlib

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, bytes_of, lines_of

LAYOUT = "MMVP-VLM"
_IMAGES = "MLLM_VLM Images"
_HEADER = ("Question ID", "Type", "Statement")


def find(folder: pathlib.Path) -> list[Found]:
    """Raises DataError where the questions are there and the pictures are not."""
    path = folder / "Questions.csv"
    if not path.is_file():
        return []
    if not (folder / _IMAGES).is_dir():
        if lines_of(path)[:1] != [",".join(_HEADER)]:
            return []
        raise DataError(f"{folder}: {LAYOUT}: has Questions.csv, but no folder {_IMAGES!r}")
    return [Found("mmvp_vlm", LAYOUT, folder, functools.partial(open_folder, folder))]


def open_folder(folder: pathlib.Path) -> Benchmark:
    """Rows 2 i and 2 i + 1 are pair i; a pair is right where each statement's nearest picture is
    its own."""
    path = folder / "Questions.csv"
    rows = list(csv.reader(io.StringIO("\n".join(lines_of(path)), newline="")))
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows or tuple(cell.strip() for cell in rows[0]) != _HEADER:
        raise DataError(f"{path}: must begin with the line {','.join(_HEADER)}")
    rows = rows[1:]
    if not rows or len(rows) % 2:
        raise DataError(f"{path}: has {len(rows)} rows; must be pairs of rows")
    files = []
    captions = []
    kinds = []
    for number, row in enumerate(rows, 2):
        if len(row) != len(_HEADER):
            raise DataError(
                f"{path}: row {number} has {len(row)} fields; must be {', '.join(_HEADER)}"
            )
        question, kind, statement = (cell.strip() for cell in row)
        files.append(f"{kind}/{question}.jpg")
        captions.append([statement])
        kinds.append(kind)
    names = sorted(set(kinds))
    values = {
        "captions": Values(Column("texts"), captions),
        "group": Values(Column("int"), np.arange(len(files)) // 2),
        "kind": Values(Column("text"), kinds),
    }
    source = ImageFiles(str(folder), folder / _IMAGES, files, values, bytes_of(path))
    columns = {"image": "image", "captions": "captions", "group": "group", "kind": "kind"}
    notes = (f"{len(names)} kinds; each figure by kind as image_acc/KIND",)
    return Benchmark(
        "mmvp_vlm",
        "pairs",
        source,
        columns,
        "image_acc_mean_of_kinds",
        pictures=source.pictures,
        notes=notes,
    )
