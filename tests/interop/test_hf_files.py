"""Preprocessing that travels: the same pixels as transformers' image processors, there and back."""

import io
import json

import numpy as np
import pytest
from interop_cases import library
from PIL import Image

from jaxvl.data.preprocess import Preprocess
from jaxvl.interop import hf_files
from jaxvl.interop.mapping import ConversionError

transformers = library("transformers")
CASES = {
    "CLIPImageProcessor": dict(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "CLIPImageProcessor, scaled more": dict(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}, resample=2),
    "SiglipImageProcessor": dict(size={"height": 24, "width": 24}),
    "EfficientNetImageProcessor": dict(
        size={"height": 32, "width": 32}, crop_size={"height": 24, "width": 24}, do_center_crop=True, rescale_factor=1 / 127.5,
        rescale_offset=True, do_normalize=False, include_top=False, resample=2,
    ),
}  # fmt: skip


def picture():
    """Smooth, so that ways of scaling differ little, and no square."""
    y, x = np.mgrid[:60, :90] / 15  # sides that all scale to whole numbers
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return Image.fromarray(np.uint8(127.5 + 127 * pixels))


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case, tmp_path):
    kind = case.split(",")[0]
    theirs = getattr(transformers, kind)(**CASES[case])
    theirs.save_pretrained(tmp_path)
    out = io.BytesIO()
    picture().save(out, "PNG")
    wanted = np.asarray(theirs(picture(), return_tensors="pt").pixel_values)[0].transpose(1, 2, 0)
    preprocess, notes = hf_files.read_preprocess(tmp_path, 24, "clip")
    assert not notes
    for p in (preprocess, written(preprocess, tmp_path / "back")):
        ours = np.asarray(p.normalise(p.decode(out.getvalue()) / np.float32(255)))
        assert np.abs(ours - wanted).max() < 0.06 * np.ptp(wanted) / 2 and np.abs(ours - wanted).mean() < 0.01 * np.ptp(wanted)


def written(preprocess, folder):
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(hf_files.preprocessor(preprocess)))
    return hf_files.read_preprocess(folder, preprocess.image_size, "clip")[0]


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(image_processor_type="ViTImageProcessor"), "image_processor_type: 'ViTImageProcessor'"),
        (dict(size=24, crop_size=48), "crop_size: 48; gives pictures of 48 pixels"),
        (dict(size={"height": 24, "width": 32}, do_center_crop=False), "only square"),
        (dict(size=24, crop_size=24, resample=5), "resample: 5"),
        (dict(size=[24, 24], crop_size=24), "size: .*must be one number"),
        (dict(size=24, crop_size=24, image_mean=0.5), "image_mean: 0.5; must be 3 numbers"),
        (dict(image_processor_type="Siglip2ImageProcessor", patch_size=14), "patch_size: 14; can be taken over as 8 only"),
        (dict(image_processor_type="Siglip2ImageProcessor", patch_size=8, max_num_patches=64), "max_num_patches: 64; can be .* 9 only"),
        (dict(size=24, crop_size=24, do_rescale=False), "do_rescale: False"),
    ],
)
def test_what_has_no_word_is_refused(values, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **values}))
    with pytest.raises(ConversionError, match=message):
        hf_files.read_preprocess(tmp_path, 24, "clip", patch=8)


def test_a_folder_without_one_gets_the_familys(tmp_path):
    preprocess, notes = hf_files.read_preprocess(tmp_path, 224, "siglip")
    assert preprocess == Preprocess(224, resize="squash") and "usual preprocessing of siglip" in notes[0]
