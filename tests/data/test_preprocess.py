import io

import numpy as np
import pytest
from data_samples import MOVING, FakeConfig, FakeSource, encoded, noise, record, tokenizer
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data import pictures
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.picture import Picture
from jaxvl.data.pictures import open_picture
from jaxvl.data.preprocess import Preprocess, crop_box, fit
from jaxvl.data.records import BadRecord


def decode(data, size):
    return Preprocess(size).decode(data)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_of_the_right_size_is_unchanged(channels):
    pixels = noise(0, 16, 16, channels)
    pixels[..., 3:] = 255
    np.testing.assert_array_equal(decode(encoded(pixels), 16), pixels)


def test_grey_palette_and_grey_alpha_pictures():
    grey = noise(0, 8, 8)
    np.testing.assert_array_equal(decode(encoded(grey), 8), np.repeat(grey[..., None], 3, -1))
    out = io.BytesIO()
    Image.fromarray(noise(1, 8, 8, 3)).quantize(16).save(out, "PNG", transparency=0)
    assert decode(out.getvalue(), 8).shape == (8, 8, 4)
    assert decode(encoded(noise(2, 8, 8, 2)), 8).shape == (8, 8, 4)


def test_hidden_colours_do_not_bleed_into_edges():
    # Left half opaque red; right half transparent, but stored as pure green.
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 255, 0, 0)
    small = decode(encoded(pixels), 12).astype(int)
    seen = small[..., 3] > 0
    assert small[seen][:, 1].max() == 0 and small[seen][:, 0].min() >= 250
    assert 0 < small[6, :, 3].min() + small[6, 5:7, 3].mean() < 255  # there is a soft edge at all


def test_the_centre_of_a_wide_picture_is_kept():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    np.testing.assert_array_equal(decode(encoded(pixels), 20), np.full((20, 20, 3), 200, np.uint8))
    tall = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    np.testing.assert_array_equal(decode(encoded(tall), 20), np.full((20, 20, 3), 200, np.uint8))


def test_scaling_agrees_with_pillow():
    pixels = noise(3, 40, 40, 3)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(decode(encoded(pixels), 16).astype(int) - np.asarray(expected)).max() <= 1


def test_a_jpeg_is_decoded():
    pixels = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3))
    got = decode(encoded(pixels, "JPEG", quality=95), 32).astype(int)
    np.testing.assert_allclose(got[16, :, 0], pixels[0, 4::8, 0], atol=6)


@pytest.mark.parametrize("keep", [0, 20, 300])
def test_damaged_pictures_are_bad_records(keep):
    with pytest.raises(BadRecord, match="image cannot be decoded"):
        decode(encoded(noise(0, 32, 32, 4))[:keep], 16)


def test_a_picture_too_large_to_be_honest(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(BadRecord, match="image is too large: 40 x 40 pixels; at most 1,000"):
        decode(encoded(noise(0, 40, 40, 3)), 16)


def test_crops_stay_inside_and_keep_the_asked_area():
    draws = np.random.default_rng(0).random((500, 4))
    for width, height in ((300, 200), (64, 640), (50, 50)):
        for row in draws:
            left, top, right, bottom = crop_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3), row)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            asked = 0.08 + 0.92 * row[0]
            share = (right - left) * (bottom - top) / (width * height)
            assert share <= asked + 1e-9
            if right - left < width and bottom - top < height:  # it fitted
                assert share == pytest.approx(asked)
                assert (right - left) / (bottom - top) == pytest.approx(0.75 * (16 / 9) ** row[1])


def test_the_whole_area_is_the_whole_picture():
    pixels = noise(4, 24, 24, 3)
    box = crop_box(24, 24, (1.0, 1.0), (1.0, 1.0), [0.3, 0.6, 0.9, 0.1])
    np.testing.assert_array_equal(fit(open_picture(encoded(pixels)), 24, box, "bicubic"), pixels)


def test_a_box_is_cut_out():
    pixels = noise(5, 24, 24, 4)
    pixels[..., 3] = 255
    np.testing.assert_array_equal(
        fit(open_picture(encoded(pixels)), 8, (4, 10, 12, 18), "bicubic"), pixels[10:18, 4:12]
    )


def test_json_round_trip_and_refusals():
    ours = Preprocess(96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), background=(0.0, 0.5, 1.0))
    assert Preprocess.from_json(ours.to_json()) == ours
    np.testing.assert_allclose(ours.normalise(np.float32([0.1, 0.7, 0.3])), [0, 1, 0], atol=1e-6)
    with pytest.raises(ConfigError, match=r"std: .* must be > 0"):
        Preprocess(std=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="background"):
        Preprocess(background=(0.0, 0.0, 1.5))


# --------------------------------------------------------------------------------------------------
# Training sees what evaluation sees

S = 12
PHOTO = encoded(
    np.kron(noise(7, 9, 14, 3), np.ones((8, 8, 1), np.uint8)), "JPEG", quality=95
)  # 112 x 72
WAYS = {
    "centre": dict(),
    "centre, bilinear": dict(interpolation="bilinear"),
    "centre of more": dict(scale_to=16, interpolation="lanczos"),
    "squash": dict(resize="squash"),
    "squash, bilinear": dict(resize="squash", interpolation="bilinear"),
    "squash, centre of more": dict(
        resize="squash", scale_to=17, interpolation="nearest", crop_rounding="even"
    ),
    "on a background": dict(flatten=True, background=(0.2, 0.4, 0.6)),
}


def by_pillow(data, scale_to=S, resize="centre", interpolation="bicubic", **_):
    """uint8 [S, S, 3] by Pillow's methods alone."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    size = (scale_to, scale_to) if resize == "squash" else (scale_to * width // height, scale_to)
    scaled = picture.resize(size, Image.Resampling[interpolation.upper()])
    left, top = (int((n - S) / 2) for n in scaled.size)
    return np.asarray(scaled.crop((left, top, left + S, top + S)))


def training(preprocess, fast_decode=True, **options):
    """The first batch of a source whose pictures and frames are all PHOTO."""
    records = {i: {**record(i), "image": PHOTO, "frames": [PHOTO, PHOTO]} for i in range(4)}
    image = Picture(size=S, fast_decode=fast_decode, **options)
    video = Frames(size=S, frames=2, fast_decode=fast_decode)
    config = DataConfig(FakeConfig(), batch=4, fields=dict(image=image, video=video))
    b = Batches(config, FakeSource(4, records, MOVING), tokenizer(), seed=0, preprocess=preprocess)
    try:
        return b[0]
    finally:
        b.close()


@pytest.mark.parametrize("way", WAYS)
def test_training_pictures_follow_preprocess(way):
    preprocess = Preprocess(S, **WAYS[way])
    expected = by_pillow(PHOTO, **WAYS[way])
    np.testing.assert_array_equal(preprocess.decode(PHOTO), expected)
    batch = training(preprocess, fast_decode=False)
    for row in (*batch["image"], *batch["video"].reshape(-1, S, S, 4)):
        np.testing.assert_array_equal(row[..., :3], expected)
    fast = training(preprocess)["image"]  # decoded at a fraction of its size
    assert (fast == fast[0]).all()
    if "nearest" not in WAYS[way].values():
        assert np.abs(fast[0, ..., :3].astype(int) - expected).mean() < 6


def test_tasks_of_another_size_cut_in_proportion():
    ours = Preprocess(289, scale_to=346, resize="squash")
    assert ours.at(289) == ours and ours.at(224) == Preprocess(224, scale_to=268, resize="squash")
    assert Preprocess(32).at(48) == Preprocess(48)


def test_random_parts_are_scaled_by_the_interpolation_of_preprocess():
    nearest = training(Preprocess(S, interpolation="nearest"), crop=(0.3, 0.6), fast_decode=False)[
        "image"
    ]
    colours = {
        tuple(c)
        for c in np.asarray(Image.open(io.BytesIO(PHOTO)).convert("RGB")).reshape(-1, 3).tolist()
    }
    assert {
        tuple(c) for c in nearest[..., :3].reshape(-1, 3).tolist()
    } <= colours  # none is mixed of two


def test_a_picture_of_extreme_ratio_is_not_scaled_as_a_whole(monkeypatch):
    wide = encoded(np.kron(noise(8, 1, 40, 3), np.ones((6, 9, 1), np.uint8)))  # 360 x 6
    whole = Preprocess(S).decode(wide).astype(int)
    np.testing.assert_array_equal(whole, by_pillow(wide))
    monkeypatch.setattr("jaxvl.data.preprocess.MAX_PIXELS", S * S)
    assert np.abs(Preprocess(S).decode(wide) - whole).max() <= 1


def test_flattened_pictures_are_put_on_the_background_before_they_are_scaled():
    pixels = noise(9, 30, 30, 4)
    ours = Preprocess(S, flatten=True, background=(0.2, 0.4, 1.0)).decode(encoded(pixels))
    behind = Image.new("RGBA", (30, 30), (51, 102, 255, 255))
    expected = (
        Image.alpha_composite(behind, Image.fromarray(pixels))
        .convert("RGB")
        .resize((S, S), Image.Resampling.BICUBIC)
    )
    np.testing.assert_array_equal(ours, np.asarray(expected))
