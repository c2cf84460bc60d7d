"""Boxes follow their picture: a painted rectangle is found again where its box says."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvl.data.augment import Augment
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.boxes import PictureWithBoxes
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column, Source

WIDTH = 300
HEIGHT = 200
SIZE = 128
BOX = (120, 70, 190, 130)  # left, top, right, bottom in pixels of the upright picture


def picture(orientation: int = 1) -> bytes:
    """White with a red rectangle at BOX once it is upright."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (255, 0, 0)
    image = Image.fromarray(pixels)
    if orientation == 6:
        image = image.transpose(
            Image.Transpose.ROTATE_90
        )  # shown turned by 90 degrees to the right
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(out, "PNG", exif=exif)
    return out.getvalue()


class One(Source):
    name = "one"
    fingerprint = "one"
    columns = {"image": Column("image"), "boxes": Column("array", optional=True)}

    def __len__(self):
        return 1

    def read(self, i, columns=None):
        raise NotImplementedError


def rows(config: PictureWithBoxes, record: dict, draws=(0.4, 0.5, 0.6, 0.3), **preprocess):
    """One row as the host makes it."""
    context = Context(None, Preprocess(image_size=SIZE, **preprocess), Cache(0))
    reader = config.reader("image", One(), context)
    out = {
        name: np.zeros((1, *row.shape), row.dtype) for name, row in config.arrays("image").items()
    }
    reader.write(out, 0, reader.load(record), draws)
    return out


def red(pixels: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) in 0 … 1 of what is red in [S, S, 3] of 0 … 1."""
    found = (pixels[..., 0] > 0.8) & (pixels[..., 1] < 0.5)
    y, x = np.nonzero(found)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / pixels.shape[0]


HOW = [
    dict(),
    dict(crop=(0.5, 0.9)),
    dict(augment=Augment(flip=1.0)),
    dict(augment=Augment(zoom=(0.6, 0.9), shift=0.1)),
    dict(crop=(0.6, 0.9), augment=Augment(stretch=0.2, flip=0.5, zoom=(0.8, 1.1))),
]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("seen", [dict(), dict(resize="squash"), dict(scale_to=160)], ids=str)
def test_a_box_stays_around_its_thing(how, seen):
    config = PictureWithBoxes(size=SIZE, max_boxes=3, fast_decode=False, **how)
    host = rows(config, dict(image=picture(), boxes=np.array([BOX])), **seen)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 1)
        batch = {name: jax.numpy.asarray(value) for name, value in host.items()}
        preprocess = Preprocess(image_size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        made = config.on_device("image", batch, keys, preprocess)
        assert made["image_boxes_mask"][0].tolist() == [True, False, False]
        np.testing.assert_allclose(
            made["image_boxes"][0, 0], red(np.asarray(made["image"][0])), atol=2.5 / SIZE
        )


def test_a_turned_box_is_the_smallest_around_it():
    config = PictureWithBoxes(size=SIZE, max_boxes=1, augment=Augment(rotate=30.0, zoom=(0.7, 0.7)))
    host = rows(config, dict(image=picture(), boxes=np.array([BOX])))
    preprocess = Preprocess(image_size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for seed in range(4):
        batch = {name: jax.numpy.asarray(value) for name, value in host.items()}
        made = config.on_device(
            "image", batch, jax.random.split(jax.random.key(seed), 1), preprocess
        )
        np.testing.assert_allclose(
            made["image_boxes"][0, 0], red(np.asarray(made["image"][0])), atol=3 / SIZE
        )


def test_orientation_sizes_and_shares_are_the_same_box():
    config = PictureWithBoxes(size=SIZE, max_boxes=1, fast_decode=False)
    expected = rows(config, dict(image=picture(), boxes=np.array([BOX])))["image_boxes"]
    upright = rows(config, dict(image=picture(orientation=6), boxes=np.array([BOX])))["image_boxes"]
    np.testing.assert_allclose(upright, expected, atol=1e-6)
    coco = PictureWithBoxes(size=SIZE, max_boxes=1, corners="size", fast_decode=False)
    given = np.array([[BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]])
    np.testing.assert_allclose(
        rows(coco, dict(image=picture(), boxes=given))["image_boxes"], expected, atol=1e-6
    )
    shares = PictureWithBoxes(size=SIZE, max_boxes=1, boxes_in="shares", fast_decode=False)
    given = np.array([BOX]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_allclose(
        rows(shares, dict(image=picture(), boxes=given))["image_boxes"], expected, atol=1e-6
    )


def test_what_is_cut_off_is_masked():
    config = PictureWithBoxes(size=SIZE, max_boxes=4, least=0.5)
    outside = (0, 0, 40, 200)  # the centre of 300 x 200 begins at 50
    half = (20, 50, 70, 150)
    host = rows(config, dict(image=picture(), boxes=np.array([outside, half, BOX, BOX, BOX])))
    batch = {name: jax.numpy.asarray(value) for name, value in host.items()}
    made = config.on_device(
        "image", batch, jax.random.split(jax.random.key(0), 1), Preprocess(image_size=SIZE)
    )
    assert made["image_boxes_mask"][0].tolist() == [False, False, True, True]
    assert not np.asarray(made["image_boxes"][0, :2]).any()


def test_no_boxes_and_bad_boxes():
    config = PictureWithBoxes(size=SIZE, max_boxes=2)
    assert not rows(config, dict(image=picture()))["image_boxes_mask"].any()
    assert not rows(config, dict(image=picture(), boxes=np.zeros((0, 4))))["image_boxes_mask"].any()
    for bad in (np.zeros((2, 3)), np.array([[0, 0, np.nan, 1]])):
        with pytest.raises(BadRecord, match="boxes are no boxes"):
            rows(config, dict(image=picture(), boxes=bad))
