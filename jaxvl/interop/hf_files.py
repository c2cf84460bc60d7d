"""Preprocessor files of transformers' folders as `Preprocess`, and back."""

from __future__ import annotations

import pathlib
from typing import Any

from jaxvl.aliases import Json
from jaxvl.data.preprocess import Preprocess
from jaxvl.interop.bundle import Section, refusing
from jaxvl.interop.files import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
RESAMPLE = {3: "bicubic", 2: "bilinear", 1: "lanczos", 0: "nearest"}  # Pillow's numbers
_PROCESSORS = (
    "CLIPImageProcessor",
    "CLIPFeatureExtractor",
    "SiglipImageProcessor",
    "Siglip2ImageProcessor",
    "EfficientNetImageProcessor",
)


def read_preprocess(
    folder: pathlib.Path, image_size: int, family: str, patch: int | None = None
) -> tuple[Preprocess, tuple[str, ...]]:
    """`Preprocess` of a folder for a model of this image size, cut into patches of so many pixels a
    side, and what is to be told.

    Raises:
      ConversionError: a size other than the model's, or a step that `Preprocess` has no word for.
    """
    path = folder / "preprocessor_config.json"
    values = None
    if path.is_file():
        values = read_json(path)
    elif (
        folder / "processor_config.json"
    ).is_file():  # transformers 5 writes all of it in one file
        path = folder / "processor_config.json"
        values = read_json(path).get("image_processor")
    if values is None:
        return default(family, image_size), (
            (
                f"{folder} has no preprocessor_config.json; the usual preprocessing of {family} "
                f"is taken"
            ),
        )
    section = Section(values, path.name)
    kind = (
        section.get(
            "image_processor_type", section.get("feature_extractor_type", "CLIPImageProcessor")
        )
        .removesuffix("Fast")
        .removesuffix("Pil")
    )
    if kind not in _PROCESSORS:
        raise section.refuse(
            "image_processor_type", f"can be taken over as {', '.join(_PROCESSORS)} only"
        )
    if kind.startswith("Siglip2") and patch is not None:
        section.only("patch_size", (patch,), patch)
        section.only("max_num_patches", ((image_size // patch) ** 2,), (image_size // patch) ** 2)
    return _read(section, kind, image_size)


def default(family: str, image_size: int) -> Preprocess:
    """What the papers of the family use."""
    if family == "clip":
        return Preprocess(image_size, CLIP_MEAN, CLIP_STD, flatten=True)
    if family == "align":
        scale_to = round(image_size * 346 / 289)
        return Preprocess(
            image_size, resize="squash", scale_to=scale_to, interpolation="bilinear", flatten=True
        )
    return Preprocess(image_size, resize="squash", flatten=True)


def _read(section: Section, kind: str, image_size: int) -> tuple[Preprocess, tuple[str, ...]]:
    clip = kind.startswith("CLIP")
    efficient = kind.startswith("Efficient")
    naflex = kind.startswith("Siglip2")
    section.only("do_rescale", (True,), True)
    interpolation = section.only("resample", RESAMPLE, 2 if naflex else 3)
    resize = "squash"
    scale_to = None
    notes = ()
    if naflex:
        notes = (
            (
                "Siglip2ImageProcessor keeps the sides' ratio; here pictures are scaled to a "
                "square, as fixed-resolution SigLIP2 does"
            ),
        )
    else:
        section.only("do_resize", (True,), True)
        usual = dict.fromkeys(("height", "width"), 346 if efficient else 224)
        size = section.get("size", {"shortest_edge": 224} if clip else usual)
        resize = "centre" if isinstance(size, int) or "shortest_edge" in size else "squash"
        side = _side(section, "size", size)
        crop = section.get("do_center_crop", clip)
        visible = side
        if crop:
            usual_crop = 224 if clip else 289
            visible = _side(section, "crop_size", section.get("crop_size", usual_crop))
        if not crop and resize == "centre":
            raise section.refuse(
                "do_center_crop", "must be true where only the shortest side is scaled"
            )
        if visible != image_size:
            raise section.refuse(
                "crop_size" if crop else "size",
                f"gives pictures of {visible} pixels a side, but the model's are {image_size}",
            )
        scale_to = side if side != visible else None
    mean, std = _normalisation(section, clip, efficient)
    with refusing(section.where):
        how = dict(resize=resize, scale_to=scale_to, interpolation=interpolation, flatten=True)
        return Preprocess(image_size, mean, std, **how), notes


def _normalisation(
    section: Section, clip: bool, efficient: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of values in 0..1. Theirs are of `value · 255 · rescale_factor -
    rescale_offset`."""
    scale = 255 * section.number("rescale_factor", 1 / 255)
    offset = float(section.get("rescale_offset", False))
    normal = section.get("do_normalize", True)
    mean = (0.0,) * 3
    std = (1.0,) * 3
    if normal:
        mean = section.numbers("image_mean", CLIP_MEAN if clip else HALF)
        std = section.numbers("image_std", CLIP_STD if clip else HALF)
    powers = 2 if efficient and section.get("include_top", True) else 1
    # Rounded where the factor is not exactly 1 / 255, so that 0.5 is 0.5.
    return tuple(round((offset + m) / scale, 9) for m in mean), tuple(
        round(s**powers / scale, 9) for s in std
    )


def _side(section: Section, key: str, value: Any) -> int:
    sides = [s for s in (value.values() if isinstance(value, dict) else [value]) if s is not None]
    if not all(isinstance(s, int) for s in sides) or len(set(sides)) != 1:
        raise section.refuse(key, "must be one number: only square pictures can be taken over")
    return sides[0]


def preprocessor(preprocess: Preprocess, patch: int | None = None) -> dict[str, Json]:
    """A preprocessor_config.json; with `patch`, that of Siglip2Model, which takes pictures as
    patches."""
    side = preprocess.image_size
    scaled = preprocess.scale_to or preprocess.image_size
    shared = {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": list(preprocess.mean), "image_std": list(preprocess.std),
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.interpolation),
    }  # fmt: skip
    square = {"height": scaled, "width": scaled}
    if patch is not None:
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            **shared,
            "patch_size": patch,
            "max_num_patches": (side // patch) ** 2,
        }
    if preprocess.resize == "squash" and scaled == side:
        return {"image_processor_type": "SiglipImageProcessor", **shared, "size": square}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    if preprocess.resize == "squash":
        more = {"rescale_offset": False, "include_top": False}
        return {
            "image_processor_type": "EfficientNetImageProcessor",
            **shared,
            "size": square,
            **crop,
            **more,
        }
    return {
        "image_processor_type": "CLIPImageProcessor",
        **shared,
        "size": {"shortest_edge": scaled},
        **crop,
    }
