"""Retrieval in many languages: Crossmodal-3600, XTD10, and CLIP_benchmark's JSON."""

from __future__ import annotations

import functools
import json
import pathlib
import re

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, bytes_of, json_of, lines_of
from jaxvl.evals.benchmarks.karpathy import picture_folder

LAYOUT_XM = "Crossmodal-3600"
LAYOUT_XTD = "XTD10"
LAYOUT_JSON = "CLIP_benchmark JSON"
# File name of CLIP_benchmark's JSON without language -> name of the set.
_JSON = {
    "crossmodal3600_captions": "crossmodal3600",
    "xtd10": "xtd10",
    "xtd200": "xtd200",
    "multilingual_mscoco_captions": "multilingual_mscoco_captions",
    "flickr30k_200": "flickr30k-200",
}
_JSON_NAME = re.compile(rf"({'|'.join(_JSON)})-([A-Za-z_]+)\.json")
_XTD_NAME = re.compile(r"test_1kcaptions_([a-z]+)\.txt")
_XTD_IMAGES = "test_image_names.txt"


def find(folder: pathlib.Path) -> list[Found]:
    found = []
    if (folder / "captions.jsonl").is_file() and (folder / "images").is_dir():
        path = folder / "captions.jsonl"
        for language in _xm_languages(path):
            open_it = functools.partial(open_xm, path, language)
            found.append(Found("crossmodal3600", LAYOUT_XM, folder, open_it, language))
    if (folder / _XTD_IMAGES).is_file():
        found += _find_xtd(folder)
    for path in sorted(folder.glob("*-*.json")):
        fits = _JSON_NAME.fullmatch(path.name)
        if fits:
            open_it = functools.partial(open_json, path, _JSON[fits[1]], fits[2])
            found.append(Found(_JSON[fits[1]], LAYOUT_JSON, folder, open_it, fits[2]))
    return found


def _xm_rows(path: pathlib.Path) -> list[dict]:
    rows = []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is no JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("image/key"), str):
            raise DataError(f"{path}: line {number} must have a text 'image/key'")
        rows.append(row)
    return rows


def _xm_languages(path: pathlib.Path) -> list[str]:
    """Languages of the first line."""
    with open(path, "rb") as file:
        line = file.readline()
    try:
        row = json.loads(line)
        return sorted(
            key for key, value in row.items() if isinstance(value, dict) and "caption" in value
        )
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: {LAYOUT_XM}: line 1 is no JSON object ({error})") from None


def open_xm(path: pathlib.Path, language: str) -> Benchmark:
    """The first caption of every image, as CLIP_benchmark takes it."""
    files = []
    captions = []
    for number, row in enumerate(_xm_rows(path), 1):
        try:
            caption = row[language]["caption"][0]
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{path}: record {number} has no caption in {language!r}") from None
        files.append(f"{row['image/key']}.jpg")
        captions.append([str(caption)])
    return _benchmark("crossmodal3600", path, path.parent / "images", files, captions, language)


def _find_xtd(folder: pathlib.Path) -> list[Found]:
    """Captions lie beside the names of images; some languages in MIC and STAIR, beside that folder
    or in it."""
    captions = {}
    for place in (
        folder,
        folder / "MIC",
        folder / "STAIR",
        folder.parent / "MIC",
        folder.parent / "STAIR",
    ):
        for path in sorted(place.glob("test_1kcaptions_*.txt")):
            fits = _XTD_NAME.fullmatch(path.name)
            if fits:
                captions.setdefault(fits[1], path)
    if not captions:
        raise DataError(
            f"{folder}: {LAYOUT_XTD}: has {_XTD_IMAGES}, but no test_1kcaptions_LANGUAGE.txt"
        )
    names = folder / _XTD_IMAGES
    return [
        Found(
            "xtd10",
            LAYOUT_XTD,
            folder,
            functools.partial(open_xtd, names, path, language),
            language,
        )
        for language, path in sorted(captions.items())
    ]


def open_xtd(names: pathlib.Path, path: pathlib.Path, language: str) -> Benchmark:
    """Line i of the captions belongs to line i of the names of images."""
    files = [line.strip() for line in lines_of(names)]
    captions = [line.strip() for line in lines_of(path)]
    if len(files) != len(captions):
        raise DataError(
            f"{path}: has {len(captions)} captions, but {names.name} {len(files)} images"
        )
    folder = picture_folder(names.parent, files, ("images", "", "../images"))
    return _benchmark("xtd10", path, folder, files, [[caption] for caption in captions], language)


def open_json(path: pathlib.Path, name: str, language: str) -> Benchmark:
    """`image_paths` and `annotations`, aligned. A path that lies elsewhere now is looked for by its
    last parts."""
    content = json_of(path)
    paths = content.get("image_paths") if isinstance(content, dict) else None
    captions = content.get("annotations") if isinstance(content, dict) else None
    if (
        not isinstance(paths, list)
        or not isinstance(captions, list)
        or len(paths) != len(captions)
        or not paths
    ):
        raise DataError(
            f"{path}: must hold 'image_paths' and 'annotations', two lists of one length"
        )
    if not all(isinstance(text, str) for text in [*paths, *captions]):
        raise DataError(f"{path}: 'image_paths' and 'annotations' must be texts")
    files = _relative(path.parent, paths)
    return _benchmark(name, path, path.parent, files, [[caption] for caption in captions], language)


def _relative(folder: pathlib.Path, paths: list[str]) -> list[str]:
    """Paths below `folder`: their last parts, as many as lead to a file there. Raises DataError
    where none does."""
    for path in paths[:20]:
        parts = pathlib.PurePosixPath(path.replace("\\", "/")).parts
        for used in range(1, len(parts) + 1):
            if (folder / pathlib.PurePosixPath(*parts[-used:])).is_file():
                return [
                    "/".join(pathlib.PurePosixPath(p.replace("\\", "/")).parts[-used:])
                    for p in paths
                ]
    raise DataError(f"{folder}: the pictures of its annotations, as {paths[0]!r}, are not below it")


def _benchmark(
    name: str,
    path: pathlib.Path,
    folder: pathlib.Path,
    files: list[str],
    captions: list[list[str]],
    language: str,
) -> Benchmark:
    source = ImageFiles(
        str(path), folder, files, {"captions": Values(Column("texts"), captions)}, bytes_of(path)
    )
    columns = {"image": "image", "captions": "captions"}
    return Benchmark(
        name,
        "retrieval",
        source,
        columns,
        MAIN_METRIC["retrieval"],
        language=language,
        pictures=source.pictures,
    )
