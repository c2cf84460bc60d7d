"""Pictures, their views, and what the compiled step makes of them."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from data_samples import FakeSource, encoded, noise, record, row_of
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.augment import Augment, augment
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord

S = 12
FIELD = Picture(size=S, fast_decode=False)
PHOTO = encoded(
    np.kron(noise(7, 40, 60, 3), np.ones((4, 4, 1), np.uint8)), "JPEG", quality=95
)  # 240 x 160


def row(field, data, **options):
    found = row_of(field, {"image": data}, "view", **options)
    return None if found is None else found["view"]


def ramp(width=90, height=60):
    """A picture whose columns can be read off red, and its rows off green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)[None, :]
    pixels[..., 1] = np.arange(height)[:, None]
    return encoded(pixels)


def test_a_row_is_the_scaled_centre():
    expected = (
        Image.open(io.BytesIO(PHOTO))
        .resize((18, 12), Image.Resampling.BICUBIC)
        .crop((3, 0, 15, 12))
    )
    found = row(FIELD, PHOTO)
    assert (
        (found.shape, found.dtype)
        == ((S, S, 4), np.uint8)
        == (FIELD.arrays("view")["view"].shape, FIELD.arrays("view")["view"].dtype)
    )
    np.testing.assert_array_equal(found[..., :3], np.asarray(expected))
    assert (found[..., 3] == 255).all()


def test_transparency_is_kept():
    pixels = noise(1, S, S, 4)
    np.testing.assert_array_equal(row(FIELD, encoded(pixels))[..., 3], pixels[..., 3])


def test_the_size_is_the_fields_own_and_the_cut_in_proportion():
    found = row(FIELD, PHOTO, preprocess=Preprocess(24, scale_to=48, resize="squash"))
    scaled = (
        Image.open(io.BytesIO(PHOTO))
        .resize((24, 24), Image.Resampling.BICUBIC)
        .crop((6, 6, 18, 18))
    )
    np.testing.assert_array_equal(found[..., :3], np.asarray(scaled))


def test_a_fast_decode_differs_little():
    exact = row(FIELD, PHOTO).astype(int)
    fast = row(dataclasses.replace(FIELD, fast_decode=True), PHOTO)
    difference = np.abs(exact - fast)
    assert 0 < difference.mean() < 6


@pytest.mark.parametrize(
    "draws", np.random.default_rng(0).random((6, 4)).tolist(), ids=lambda d: f"{d[0]:.2f}"
)
def test_a_cut_has_the_drawn_area_ratio_and_place(draws):
    """Szegedy's crop: its corners are read off the colours and compared with the closed form."""
    crop = (0.2, 0.5)
    ratio = (0.8, 1.25)
    found = row(
        dataclasses.replace(FIELD, size=30, crop=crop, crop_ratio=ratio), ramp(), draws=draws
    ).astype(float)
    area = (crop[0] + (crop[1] - crop[0]) * draws[0]) * 90 * 60
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[1]
    width = np.sqrt(area * aspect)
    height = np.sqrt(area / aspect)
    left = draws[2] * (90 - width)
    top = draws[3] * (60 - height)
    centre = lambda first, length, k: first + length * (k + 0.5) / 30 - 0.5  # of pixel k of 30
    for k in (5, 15, 24):
        assert abs(found[15, k, 0] - centre(left, width, k)) < 1.2
        assert abs(found[k, 15, 1] - centre(top, height, k)) < 1.2


def test_the_whole_picture_is_cut_by_the_centre_rule_only_without_crop():
    whole = row(dataclasses.replace(FIELD, size=60), ramp())
    assert abs(int(whole[30, 0, 0]) - 15) <= 1 and abs(int(whole[30, -1, 0]) - 74) <= 1


def keys(*fields, preprocess=None):
    context = Context(None, preprocess or Preprocess(), Cache(0))
    return [field.reader("x", FakeSource(1), context).key for field in fields]


def test_views_that_load_the_same_have_one_key():
    same = [FIELD, dataclasses.replace(FIELD, augment=Augment(flip=0.5))]
    assert len(set(keys(*same))) == 1
    cut = [
        dataclasses.replace(FIELD, crop=(0.1, 0.5)),
        dataclasses.replace(FIELD, crop=(0.2, 0.9), size=7, crop_ratio=(1.0, 1.0)),
    ]
    assert len(set(keys(*cut))) == 1
    others = [
        FIELD,
        cut[0],
        dataclasses.replace(FIELD, size=7),
        dataclasses.replace(FIELD, fast_decode=True),
    ]
    assert len(set(keys(*others))) == len(others)


def seen(field, pixels, keys, preprocess):
    """What the compiled step makes of a batch."""
    step = jax.jit(lambda view: field.on_device("view", {"view": view}, keys, preprocess)["view"])
    return np.asarray(step(pixels))


def test_the_step_augments_and_normalises():
    preprocess = Preprocess(
        S, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), background=(1.0, 0.0, 0.5)
    )
    pixels = np.stack([row(FIELD, encoded(noise(i, S, S, 4))) for i in range(5)])
    drawn = jax.random.split(jax.random.key(0), 5)
    plain = seen(FIELD, pixels, drawn, preprocess)
    assert plain.shape == (5, S, S, 3) and plain.dtype == np.float32
    values = np.asarray(pixels, np.float64) / 255
    alpha = values[..., 3:]
    shown = values[..., :3] * alpha + np.array(preprocess.background) * (1 - alpha)
    np.testing.assert_allclose(
        plain, (shown - preprocess.mean) / np.array(preprocess.std), atol=0.02
    )
    how = Augment(flip=0.5, contrast=0.3)
    changed = seen(dataclasses.replace(FIELD, augment=how), pixels, drawn, preprocess)
    expected = jax.jit(
        lambda x: preprocess.normalise(augment(x, drawn, how, preprocess.background))
    )(pixels)
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    assert np.abs(changed - plain).max() > 0.1


def test_interleaved_rows_are_augmented_picture_by_picture():
    preprocess = Preprocess(S)
    field = dataclasses.replace(FIELD, augment=Augment(flip=0.5, brightness=0.3))
    pixels = np.stack([row(field, record(i)["image"]) for i in range(6)])
    drawn = jax.random.split(jax.random.key(1), 6)
    flat = seen(field, pixels, drawn, preprocess)
    packed = seen(field, pixels.reshape(2, 3, S, S, 4), drawn, preprocess)
    np.testing.assert_allclose(packed, flat.reshape(2, 3, S, S, 3), atol=1e-6)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(noise(0, S, S, 4))[:60]])
@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.2, 0.8)])
def test_what_cannot_be_decoded_is_a_bad_record(data, crop):
    with pytest.raises(BadRecord, match="image cannot be decoded"):
        row(dataclasses.replace(FIELD, crop=crop), data)


def test_a_record_without_a_picture_has_none():
    assert row(FIELD, None) is None and FIELD.needs(FakeSource(1)) == [("image",)]


REFUSED = [
    (dict(size=0), "size: 0 must be >= 1"),
    (dict(crop=(0.0, 1.0)), "crop: .* must be a smallest and a largest share"),
    (dict(crop=(0.5, 1.1)), "crop: "),
    (dict(crop=(0.6, 0.5)), "crop: "),
    (dict(crop_ratio=(2.0, 1.0)), "crop_ratio: "),
    (dict(crop_ratio=(0.0, 1.0)), "crop_ratio: "),
]


@pytest.mark.parametrize("values, message", REFUSED)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        Picture(**values)
