"""Frames of clips; a frame's grey says which it is."""

import collections
import dataclasses
import io

import jax
import numpy as np
import pytest
from data_samples import MOVING, FakeSource, encoded, noise, record, row_of
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.augment import Augment, augment
from jaxvl.data.fields.frames import Frames
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord

S = 10
SOURCE = FakeSource(1, columns=MOVING)
FIELD = Frames(size=S, frames=3, stride=2)


def clip(frames=9, size=S):
    return {
        **record(0),
        "frames": [encoded(np.full((size, size, 3), 20 * k, np.uint8)) for k in range(frames)],
    }


def row(field, given, draw=0.5, **options):
    found = row_of(field, given, source=SOURCE, draws=[draw], **options)
    return None if found is None else found["x"]


def shown(field, frames=9, draw=0.5):
    """Numbers of the frames that a row shows."""
    return (row(field, clip(frames), draw)[:, 5, 5, 0] // 20).tolist()


def test_frames_are_a_strided_run_that_starts_anywhere():
    seen = collections.Counter()
    for draw in np.random.default_rng(0).random(400).tolist():
        numbers = shown(FIELD, draw=draw)
        assert numbers == [numbers[0], numbers[0] + 2, numbers[0] + 4]
        seen[numbers[0]] += 1
    assert set(seen) == {0, 1, 2, 3, 4}  # 9 frames leave room for five starts
    assert min(seen.values()) > 400 / 5 / 2
    assert shown(FIELD, draw=np.nextafter(1.0, 0.0)) == [4, 6, 8]


def test_the_beginning_alone():
    first = dataclasses.replace(FIELD, random=False)
    assert all(shown(first, draw=draw) == [0, 2, 4] for draw in (0.0, 0.5, 0.99))


@pytest.mark.parametrize(
    "frames, expected", [(2, [0, 1, 1]), (1, [0, 0, 0]), (4, [0, 2, 3]), (5, [0, 2, 4])]
)
def test_a_clip_that_is_too_short_holds_its_last_frame(frames, expected):
    assert shown(FIELD, frames, draw=0.9) == expected


def test_shapes_and_opacity():
    field = dataclasses.replace(FIELD, frames=4)
    found = row(field, clip())
    assert (
        (found.shape, found.dtype)
        == ((4, S, S, 4), np.uint8)
        == (field.arrays("x")["x"].shape, field.arrays("x")["x"].dtype)
    )
    assert (found[..., 3] == 255).all()


def test_frames_are_scaled_and_keep_transparency():
    pixels = noise(3, 2 * S, 2 * S, 4)
    pixels[:S] = 0
    frame = row(Frames(size=S, frames=1, fast_decode=False), {"frames": [encoded(pixels)]})[0]
    expected = np.array(
        Image.open(io.BytesIO(encoded(pixels)))
        .convert("RGBa")
        .resize((S, S), Image.Resampling.BICUBIC)
        .convert("RGBA")
    )
    assert (
        np.abs(frame.astype(int) - expected)[..., 3].max() <= 1
        and frame[: S // 2 - 2, :, 3].max() == 0
    )


def test_each_frame_follows_preprocess():
    pixels = noise(4, 20, 40, 3)
    squashed = row(
        Frames(size=S, frames=1, fast_decode=False),
        {"frames": [encoded(pixels)]},
        preprocess=Preprocess(S, resize="squash"),
    )
    expected = np.asarray(Image.fromarray(pixels).resize((S, S), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(squashed[0, ..., :3], expected)


def test_a_record_without_frames_has_none():
    assert row(FIELD, record(0)) is None and row(FIELD, {"frames": []}) is None
    assert FIELD.needs(SOURCE) == [("frames",)]


@pytest.mark.parametrize("place", [0, 8])
def test_a_broken_frame_is_met_whatever_is_asked_for(place):
    bad = clip()
    bad["frames"][place] = bad["frames"][place][:30]
    with pytest.raises(BadRecord, match="image cannot be decoded"):
        row(dataclasses.replace(FIELD, random=False), bad)


def test_all_frames_of_a_clip_are_augmented_alike():
    """Each frame as the picture that it is, with its clip's key."""
    how = Augment(flip=0.5, brightness=0.2)
    field = dataclasses.replace(FIELD, augment=how)
    preprocess = Preprocess(S)
    pixels = np.stack([row(field, clip(), draw) for draw in (0.1, 0.6, 0.9)])
    keys = jax.random.split(jax.random.key(3), 3)
    step = jax.jit(
        lambda video: field.on_device("video", {"video": video}, keys, preprocess)["video"]
    )
    made = step(pixels)
    assert made.shape == (3, 3, S, S, 3) and made.dtype == np.float32
    single = jax.jit(
        lambda frame: preprocess.normalise(augment(frame, keys, how, preprocess.background))
    )
    for i in range(3):
        np.testing.assert_allclose(made[:, i], single(pixels[:, i]), atol=1e-5)
    still = np.stack([np.repeat(p[:1], 3, 0) for p in pixels])
    frames = np.asarray(step(still))
    np.testing.assert_allclose(frames[:, 0], frames[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    "field, message",
    [
        (Frames("image"), "column: 'image' of fake holds image; must be frames"),
        (Frames("video"), "column: 'video' is no column of fake"),
    ],
)
def test_columns_of_other_kinds_are_refused(field, message):
    with pytest.raises(ConfigError, match=message):
        row(field, clip())


@pytest.mark.parametrize("name", ["frames", "stride", "size"])
def test_refusals(name):
    with pytest.raises(ConfigError, match=f"{name}: 0 must be >= 1"):
        Frames(**{name: 0})
