"""Preprocessing that travels: what of it has a word here, and what is refused. The pixels:
test_pixels.py."""

import json

import pytest

from jaxvl.data.preprocess import Preprocess
from jaxvl.interop import hf_files
from jaxvl.interop.mapping import ConversionError


@pytest.mark.parametrize(
    "values, message",
    [
        (
            dict(image_processor_type="ViTImageProcessor"),
            "image_processor_type: 'ViTImageProcessor'",
        ),
        (dict(size=24, crop_size=48), "crop_size: 48; gives pictures of 48 pixels"),
        (dict(size={"height": 24, "width": 32}, do_center_crop=False), "only square"),
        (dict(size=24, crop_size=24, resample=5), "resample: 5"),
        (dict(size=[24, 24], crop_size=24), "size: .*must be one number"),
        (dict(size=24, crop_size=24, image_mean=0.5), "image_mean: 0.5; must be 3 numbers"),
        (
            dict(image_processor_type="Siglip2ImageProcessor", patch_size=14),
            "patch_size: 14; can be taken over as 8 only",
        ),
        (
            dict(image_processor_type="Siglip2ImageProcessor", patch_size=8, max_num_patches=64),
            "max_num_patches: 64; can be .* 9 only",
        ),
        (dict(size=24, crop_size=24, do_rescale=False), "do_rescale: False"),
    ],
)
def test_what_has_no_word_is_refused(values, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **values})
    )
    with pytest.raises(ConversionError, match=message):
        hf_files.read_preprocess(tmp_path, 24, "clip", patch=8)


def test_a_folder_without_one_gets_the_familys(tmp_path):
    preprocess, notes = hf_files.read_preprocess(tmp_path, 224, "siglip")
    assert (
        preprocess == Preprocess(224, resize="squash", flatten=True)
        and "usual preprocessing of siglip" in notes[0]
    )
