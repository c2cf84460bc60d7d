"""Pictures of converted weights: pixel for pixel what transformers and open_clip make of the same
file."""

import functools
import io
import json

import numpy as np
import pytest
from interop_cases import library
from PIL import Image

from jaxvl.data.preprocess import Preprocess
from jaxvl.evals.thumbnails import flatten
from jaxvl.interop import hf_files, open_clip
from jaxvl.interop.bundle import Section, rounding_note

transformers = library("transformers")
SIDE = 24
SQUARE = {"height": SIDE, "width": SIDE}
EDGE = {"shortest_edge": SIDE}
CASES = {
    "CLIPImageProcessor": dict(size=EDGE, crop_size=SQUARE),
    "CLIPImageProcessor, scaled more": dict(
        size={"shortest_edge": 32}, crop_size=SQUARE, resample=2
    ),
    "SiglipImageProcessor": dict(size=SQUARE),
    "SiglipImageProcessor, lanczos": dict(size=SQUARE, resample=1),
    "EfficientNetImageProcessor": dict(
        size={"height": 33, "width": 33},
        crop_size=SQUARE,
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
        do_convert_rgb=True,
    ),
}
# Width and height: odd remainders on either side, one pixel high or wide, very wide, smaller than
# what is asked for.
SIZES = [
    (25, 24),
    (24, 25),
    (27, 24),
    (24, 31),
    (60, 90),
    (91, 61),
    (300, 1),
    (1, 300),
    (700, 3),
    (7, 5),
    (1, 1),
    (24, 24),
    (123, 77),
]
KINDS = {
    "PNG": ("PNG", 3),
    "JPEG": ("JPEG", 3),
    "grey PNG": ("PNG", 1),
    "transparent PNG": ("PNG", 4),
}


@functools.cache
def files(kind):
    """One file of each of SIZES: waves and noise."""
    form, channels = KINDS[kind]
    rng = np.random.default_rng(0)
    out = []
    for width, height in SIZES:
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / 4 + k) * np.cos(y / 3 - k) for k in range(channels)], -1)
        pixels = np.clip(127 + 100 * waves + rng.normal(0, 30, waves.shape), 0, 255).astype(
            np.uint8
        )
        stream = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(stream, form)
        out.append(stream.getvalue())
    return out


def ours(preprocess, data):
    """Values as the model sees them, in units of 1 of 255."""
    pixels = flatten(preprocess.decode(data), preprocess.background)
    return np.asarray(preprocess.normalise(pixels / np.float32(255))) * (
        255 * np.float32(preprocess.std)
    )


def theirs(processor, data, preprocess):
    values = processor(Image.open(io.BytesIO(data)), return_tensors="np").pixel_values[0]
    return np.asarray(values).transpose(1, 2, 0) * (255 * np.float32(preprocess.std))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case, kind, tmp_path):
    name = case.split(",")[0]
    by_pillow = getattr(transformers, name + "Pil")(**CASES[case])
    by_torchvision = getattr(transformers, name)(
        **CASES[case]
    )  # the default where torchvision is installed
    by_pillow.save_pretrained(tmp_path)
    preprocess, notes = hf_files.read_preprocess(tmp_path, SIDE, "clip")
    assert not notes
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(hf_files.preprocessor(preprocess))
    )
    assert hf_files.read_preprocess(tmp_path, SIDE, "clip") == (preprocess, ())
    for size, data in zip(SIZES, files(kind)):
        mine = ours(preprocess, data)
        assert np.abs(mine - theirs(by_pillow, data, preprocess)).max() < 1e-3, size
        assert np.abs(mine - theirs(by_torchvision, data, preprocess)).max() < 3, (
            size
        )  # it rounds otherwise


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "transparent PNG"]
)  # open_clip drops transparency
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_open_clip(resize_mode, interpolation, kind):
    transform = library("open_clip").transform
    config = dict(
        size=SIDE,
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        resize_mode=resize_mode,
        interpolation=interpolation,
    )
    process = transform.image_transform_v2(transform.PreprocessCfg(**config), is_train=False)
    preprocess = open_clip._read_preprocess(Section(config, "preprocess_cfg"), SIDE)
    assert open_clip._write_preprocess(preprocess) == config
    for size, data in zip(SIZES, files(kind)):
        values = process(Image.open(io.BytesIO(data))).numpy().transpose(1, 2, 0) * (
            255 * np.float32(preprocess.std)
        )
        assert np.abs(ours(preprocess, data) - values).max() < 1e-3, size


def test_what_another_library_cuts_elsewhere_is_told():
    even = Preprocess(SIDE, crop_rounding="even")
    assert rounding_note(even, "even", "open_clip") == ()
    assert "transformers cuts the centre" in rounding_note(even, "down", "transformers")[0]
    assert rounding_note(Preprocess(SIDE, resize="squash"), "even", "open_clip") == ()
