"""COCO and Flickr with five captions an image: Karpathy's JSON and CLIP_benchmark's.

dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json   Karpathy & Fei-Fei 2015; split "test"
coco_test_karpathy.json                                            COCO's format, read as torchvision's CocoCaptions
flickr30k_test_karpathy.txt, flickr8k_test_zh.txt …                a header, then NAME.jpg,CAPTION
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Sequence

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import MAIN_METRIC, Benchmark, Found
from jaxvl.evals.benchmarks.files import ImageFiles, Values, bytes_of, json_of, lines_of

LAYOUT = "Karpathy JSON"
LAYOUT_COCO = "COCO annotations"
LAYOUT_FLICKR = "Flickr annotations"
_NAMES = {
    "dataset_coco.json": "mscoco_captions",
    "dataset_flickr30k.json": "flickr30k",
    "dataset_flickr8k.json": "flickr8k",
}
_FLICKR = re.compile(r"(flickr30k|flickr8k)_test_(karpathy|zh)\.txt")
# Where pictures lie beside the annotations.
_PICTURES = (
    "",
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "Flicker8k_Dataset",
    "val2014",
    "test2014",
)


def find(folder: pathlib.Path) -> list[Found]:
    found = []
    coco = folder / "coco_test_karpathy.json"
    if coco.is_file():
        found.append(
            Found("mscoco_captions", LAYOUT_COCO, folder, functools.partial(open_coco, coco))
        )
    for path in sorted(folder.glob("flickr*_test_*.txt")):
        fits = _FLICKR.fullmatch(path.name)
        if fits:
            language = "zh" if fits[2] == "zh" else "en"
            found.append(
                Found(
                    fits[1],
                    LAYOUT_FLICKR,
                    folder,
                    functools.partial(open_flickr, path, fits[1], language),
                    language,
                )
            )
    for file, name in _NAMES.items():
        if (folder / file).is_file():
            found.append(
                Found(name, LAYOUT, folder, functools.partial(open_karpathy, folder / file, name))
            )
    return found


def captioned(
    name: str,
    path: pathlib.Path,
    files: Sequence[str],
    captions: Sequence[list[str]],
    language: str = "en",
) -> Benchmark:
    """Retrieval among picture files and their captions, whose folder is looked for beside the
    annotations `path`.

    Raises DataError where there is no picture at all.
    """
    if not files:
        raise DataError(f"{path}: names no picture")
    folder = picture_folder(path.parent, files)
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


def picture_folder(
    folder: pathlib.Path, files: Sequence[str], places: Sequence[str] = _PICTURES
) -> pathlib.Path:
    """The first of `places` in `folder` that has one of the first files. Raises DataError."""
    for place in places:
        if any((folder / place / file).is_file() for file in files[:20]):
            return folder / place
    looked = ", ".join(place or "." for place in places)
    raise DataError(
        f"{folder}: the pictures of its annotations, as {files[0]!r}, are in none of {looked}"
    )


def open_karpathy(path: pathlib.Path, name: str, split: str = "test") -> Benchmark:
    """Raises DataError where the JSON is not as Karpathy's."""
    content = json_of(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{path}: must hold {{'images': [...]}}")
    files = []
    captions = []
    for i, image in enumerate(images):
        try:
            if image["split"] != split:
                continue
            inside = image.get("filepath", "")
            files.append(f"{inside}/{image['filename']}" if inside else str(image["filename"]))
            captions.append([str(sentence["raw"]) for sentence in image["sentences"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: image {i} must have split, filename and sentences with raw "
                f"({type(error).__name__}: {error})"
            ) from None
    if not files:
        raise DataError(f"{path}: has no image of split {split!r}")
    return captioned(name, path, files, captions)


def open_coco(path: pathlib.Path) -> Benchmark:
    """Images in ascending order of ids, captions in the order of the file, as torchvision and
    pycocotools have them.

    Raises DataError where the JSON is not in COCO's format.
    """
    content = json_of(path)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[int, list[str]] = {key: [] for key in names}
        for annotation in content["annotations"]:
            if annotation["image_id"] in captions:
                captions[annotation["image_id"]].append(str(annotation["caption"]))
        order = sorted(names)
    except (KeyError, TypeError) as error:
        what = "images with id and file_name, annotations with image_id and caption"
        raise DataError(f"{path}: must hold {what} ({type(error).__name__}: {error})") from None
    return captioned(
        "mscoco_captions", path, [names[key] for key in order], [captions[key] for key in order]
    )


def open_flickr(path: pathlib.Path, name: str, language: str) -> Benchmark:
    """Raises DataError for a line that is not `NAME.jpg,CAPTION`. Captions hold commas."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(path)[1:], 2):
        text = line.strip()
        if not text:
            continue
        stem, suffix, caption = text.partition(".jpg,")
        if not suffix or not stem:
            raise DataError(f"{path}: line {number} must be NAME.jpg,CAPTION, not {text[:60]!r}")
        captions.setdefault(f"{stem}.jpg", []).append(caption)
    return captioned(name, path, list(captions), list(captions.values()), language)
