"""MMEB's evaluation tables: a query's candidates are its own, the first one is right.

A dual encoder has no embedding of a text and a picture together: where a side has both, its row is
the sum of their unit rows, scaled to unit length again. Marks of pictures in the texts
(`<|image_1|>`) are left out.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Candidates, Found, Side
from jaxvl.evals.benchmarks.files import ImageFiles, file_names, subfolders
from jaxvl.evals.benchmarks.tables import Tables

LAYOUT = "MMEB tables"
_COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
_PICTURES = ("", "images", "eval_images", "eval-images", "image-tasks", "eval_images/MMEB")
_MARK = re.compile(r"<\|image(_\d+)?\|>|<image>")


def find(folder: pathlib.Path) -> list[Found]:
    files = _tables(folder)
    if not files:
        return []
    tests = [file for file in files if file.name.startswith("test")]
    return [
        Found(
            f"mmeb/{folder.name}",
            LAYOUT,
            folder,
            functools.partial(open_files, tests or files, folder.name),
        )
    ]


def _tables(folder: pathlib.Path) -> list[pathlib.Path]:
    """Parquet files of a folder, if they are MMEB's."""
    files = [folder / name for name in file_names(folder) if name.endswith(".parquet")]
    return files if files and set(_COLUMNS) <= set(Tables(files[:1]).names) else []


def holds_pictures(folder: pathlib.Path) -> bool:
    """Whether a folder has the name of MMEB's pictures, which are in a folder for each set, and
    lies beside its tables."""
    if folder.name not in _PICTURES:
        return False
    try:
        return any(
            _tables(folder.parent / name)
            for name in subfolders(folder.parent)
            if name != folder.name
        )
    except DataError:  # of a folder beside it, which is told where that is looked at
        return False


def open_files(files: list[pathlib.Path], name: str) -> Benchmark:
    """Raises DataError where a row has no candidate, or its texts and pictures are not as many."""
    tables = Tables(files)
    book = _Sides()
    queries = []
    candidates = []
    right = []
    for row, (text, image, texts, images) in enumerate(
        zip(*(tables.values(column) for column in _COLUMNS))
    ):
        texts = texts or []
        images = images or [""] * len(texts)
        texts = texts or [""] * len(images)
        if not texts or len(texts) != len(images):
            raise DataError(
                f"{files[0].parent}: row {row} has {len(texts)} texts and {len(images)} "
                f"pictures as candidates"
            )
        queries.append(book.place(text, image))
        candidates.append(np.array([book.place(*pair) for pair in zip(texts, images)], np.int64))
        right.append(np.arange(len(texts)) == 0)
    if not queries:
        raise DataError(f"{files[0].parent}: holds no row")
    pictures = list(book.files)
    folder = _picture_folder(files[0].parent, pictures) if pictures else files[0].parent
    described_by = hashlib.sha256(
        repr((book.sides, queries)).encode("utf-8", "surrogateescape")
    ).digest()
    source = ImageFiles(str(files[0].parent), folder, pictures, described_by=described_by)
    table = Candidates(
        tuple(book.sides), np.array(queries, np.int64), tuple(candidates), tuple(right)
    )
    notes = ("a text and a picture of one side: sum of their rows",)
    return Benchmark(
        f"mmeb/{name}",
        "candidates",
        source,
        {"image": "image"},
        MAIN_METRIC["candidates"],
        candidates=table,
        notes=notes,
    )


class _Sides:
    """Distinct sides and picture files, numbered as they come."""

    def __init__(self):
        self.sides: dict[Side, int] = {}
        self.files: dict[str, int] = {}
        self._known: dict[tuple[str | None, str | None], int] = {}

    def place(self, text: str | None, image: str | None) -> int:
        """Number of the side of a text and a picture, as they stand in the table."""
        known = self._known.get((text, image))
        if known is None:
            known = self._known[text, image] = self._new(text, image)
        return known

    def _new(self, text: str | None, image: str | None) -> int:
        number = self.files.setdefault(image, len(self.files)) if image else None
        words = " ".join(_MARK.sub(" ", text or "").split()) or None
        if words is None and number is None:
            words = ""
        return self.sides.setdefault(Side(words, number), len(self.sides))


def _picture_folder(folder: pathlib.Path, files: list[str]) -> pathlib.Path:
    for above in [folder, *folder.parents][:4]:
        for place in _PICTURES:
            if any((above / place / file).is_file() for file in files[:20]):
                return above / place
    raise DataError(
        f"{folder}: the pictures of its rows, as {files[0]!r}, are in none of "
        f"{', '.join(p or '.' for p in _PICTURES)} here or above"
    )
