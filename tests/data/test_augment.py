"""Geometry against scipy, colours against float64 numpy and `colorsys`, and properties that every
setting must have."""

import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from data_samples import noise

from jaxvl.config import ConfigError
from jaxvl.data import augment as module
from jaxvl.data.augment import Augment, augment, bilinear, plain
from jaxvl.sharding import MeshConfig, make_mesh
from jaxvl.sharding.mesh import batch_sharding

B = 16
S = 24
FULL = Augment(
    rotate=15,
    zoom=(0.7, 1.3),
    stretch=0.2,
    shear=0.1,
    shift=0.1,
    flip=0.5,
    hue=30,
    saturation=(0.2, 1.8),
    grayscale=0.2,
    contrast=0.3,
    brightness=0.2,
    tint=0.1,
    permute=0.3,
    blur=0.5,
    blur_sigma=(0.2, 1.0),
    sharpen=0.5,
    posterise=0.3,
    outline=0.5,
    line_drawing=0.2,
    invert=0.2,
    cutout=0.5,
    background=0.5,
)
WHITE = (1.0, 1.0, 1.0)


def keys(n=B, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


def run(images, config, n=None, seed=0, background=WHITE):
    return np.asarray(
        jax.jit(lambda x, k: augment(x, k, config, background))(
            images, keys(n or len(images), seed)
        )
    )


def smooth(seed=0, n=B, s=S):
    """Opaque coloured blobs on transparency, without hard edges."""
    x = scipy.ndimage.gaussian_filter(
        np.random.default_rng(seed).random((n, s, s, 4)), (0, 2, 2, 0)
    )
    x = (x - x.min()) / (x.max() - x.min())
    return np.uint8(255 * x)


IMAGES = noise(0, B, S, S, 4)
OPAQUE = IMAGES.copy()
OPAQUE[..., 3] = 255


# --------------------------------------------------------------------------------------------------
# What every setting must have


def test_no_augmentation_is_the_plain_picture():
    np.testing.assert_allclose(
        run(IMAGES, Augment(), background=(0.2, 0.4, 0.6)),
        plain(IMAGES, (0.2, 0.4, 0.6)),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "field",
    [f.name for f in dataclasses.fields(Augment) if f.name not in ("blur_sigma", "cutout_side")],
)
def test_each_setting_changes_pictures_and_keeps_them_in_range(field):
    got = run(IMAGES, dataclasses.replace(Augment(), **{field: getattr(FULL, field)}))
    assert got.dtype == np.float32 and got.shape == (B, S, S, 3)
    assert got.min() >= 0 and got.max() <= 1 and np.isfinite(got).all()
    assert np.abs(got - plain(IMAGES)).max() > 0.02


@pytest.mark.parametrize("channels", [3, 4])
def test_all_together(channels):
    got = run(IMAGES[..., :channels], FULL)
    assert (
        got.shape == (B, S, S, 3) and got.min() >= 0 and got.max() <= 1 and np.isfinite(got).all()
    )
    assert len({row.tobytes() for row in got}) == B


@pytest.mark.parametrize("channels", [3, 4])
def test_settings_that_touch_nothing_leave_the_picture(channels):
    """The whole path, with every probability so small that no row is chosen."""
    tiny = dataclasses.replace(Augment(), **{name: 1e-12 for name in module.PROBABILITIES})
    np.testing.assert_allclose(
        run(IMAGES[..., :channels], tiny), plain(IMAGES[..., :channels]), atol=2e-6
    )


def test_a_row_depends_on_its_own_key_only():
    whole = run(IMAGES, FULL)
    order = np.random.default_rng(0).permutation(B)
    f = jax.jit(lambda x, k: augment(x, k, FULL))
    np.testing.assert_allclose(f(IMAGES[order], keys()[order]), whole[order], atol=1e-5)
    np.testing.assert_allclose(f(IMAGES[3:4], keys()[3:4]), whole[3:4], atol=1e-5)


def test_sharded_rows_are_the_same():
    sharding = batch_sharding(make_mesh(MeshConfig(data=4, fsdp=2)))
    f = jax.jit(lambda x, k: augment(x, k, FULL))
    got = f(jax.device_put(IMAGES, sharding), jax.device_put(keys(), sharding))
    np.testing.assert_allclose(got, run(IMAGES, FULL), atol=1e-5)


def test_plain_is_alpha_compositing():
    rgba = IMAGES.astype(np.float64) / 255
    expected = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(plain(IMAGES, (0.1, 0.5, 0.9)), expected, atol=1e-6)
    np.testing.assert_allclose(plain(IMAGES[..., :3]), IMAGES[..., :3] / 255.0, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# Places


def test_bilinear_sampling_is_scipys():
    image = np.random.default_rng(0).random((S, S, 4)).astype(np.float32)
    y, x = np.random.default_rng(1).uniform(-4, S + 3, (2, 40, 30)).astype(np.float32)
    expected = np.stack(
        [
            scipy.ndimage.map_coordinates(
                image[..., c], [y, x], order=1, mode="grid-constant", cval=0.0
            )
            for c in range(4)
        ],
        -1,
    )
    np.testing.assert_allclose(bilinear(image, y, x), expected, atol=2e-5)


def test_flip_is_a_mirror_image():
    np.testing.assert_allclose(run(OPAQUE, Augment(flip=1.0)), plain(OPAQUE)[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_zoom_is_scipys_affine_map(factor):
    image = smooth()
    got = run(image, Augment(zoom=(factor, factor)))
    rgba = image.astype(np.float64) / 255
    rgba[..., :3] *= rgba[..., 3:]
    centre = (S - 1) / 2
    for row, out in zip(rgba, got):
        planes = [
            scipy.ndimage.affine_transform(
                row[..., c],
                np.eye(2) / factor,
                offset=centre * (1 - 1 / factor),
                order=1,
                mode="grid-constant",
            )
            for c in range(4)
        ]
        expected = np.stack(planes[:3], -1) + (1 - planes[3][..., None])
        np.testing.assert_allclose(out, np.clip(expected, 0, 1), atol=1e-4)


def test_rotation_is_scipys_about_the_centre():
    """With the angle that the row drew, read from the same draw."""
    image = smooth()
    got = run(image, Augment(rotate=30.0))
    normal = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), (12,)))(keys())
    centre = np.array([(S - 1) / 2] * 2)
    for row, out, angle in zip(
        image.astype(np.float64) / 255, got, np.deg2rad(30.0) * np.asarray(normal)[:, 0]
    ):
        row[..., :3] *= row[..., 3:]
        cos = np.cos(angle)
        sin = np.sin(angle)
        matrix = np.array(
            [[cos, sin], [-sin, cos]]
        )  # (y, x) of the new picture -> (y, x) of the old one
        planes = [
            scipy.ndimage.affine_transform(
                row[..., c], matrix, offset=centre - matrix @ centre, order=1, mode="grid-constant"
            )
            for c in range(4)
        ]
        expected = np.stack(planes[:3], -1) + (1 - planes[3][..., None])
        np.testing.assert_allclose(out, np.clip(expected, 0, 1), atol=1e-3)


def test_shift_stays_within_its_limit():
    image = np.zeros((256, S, S, 4), np.uint8)
    image[:, S // 2 - 1 : S // 2 + 1, S // 2 - 1 : S // 2 + 1] = (0, 0, 0, 255)
    dark = 1 - run(image, Augment(shift=0.25), background=WHITE)[..., 0]
    grid = np.arange(S) - (S - 1) / 2
    mass = dark.sum((1, 2))
    for moved in ((dark.sum(1) * grid).sum(1) / mass, (dark.sum(2) * grid).sum(1) / mass):
        assert (
            np.abs(moved).max() <= 0.25 * S + 1e-3
            and np.abs(moved).max() > 0.2 * S
            and abs(moved.mean()) < 1
        )


def test_hidden_colours_do_not_bleed():
    image = np.zeros((B, S, S, 4), np.uint8)
    image[..., 1] = 255  # transparent green everywhere
    image[:, 6:18, 6:18] = (255, 0, 0, 255)
    got = run(image, Augment(rotate=40, zoom=(0.5, 2.0), stretch=0.3))
    np.testing.assert_allclose(got[..., 1], got[..., 2], atol=1e-5)  # green shows as little as blue


# --------------------------------------------------------------------------------------------------
# Colours


def test_grey_is_the_mean_of_the_channels():
    got = run(OPAQUE, Augment(grayscale=1.0))
    np.testing.assert_allclose(
        got, np.repeat((OPAQUE[..., :3] / 255.0).mean(-1, keepdims=True), 3, -1), atol=1e-5
    )


def test_saturation_scales_the_distance_from_grey():
    soft = np.uint8(96 + OPAQUE // 4)
    soft[..., 3] = 255
    got = run(soft, Augment(saturation=(0.5, 0.5)))
    x = soft[..., :3] / 255.0
    grey = x.mean(-1, keepdims=True)
    np.testing.assert_allclose(got, grey + 0.5 * (x - grey), atol=1e-5)


def test_hue_turns_the_colour_circle_and_keeps_the_grey_level():
    image = np.full((400, 2, 2, 4), 255, np.uint8)
    image[..., :3] = (150, 110, 110)
    got = run(image, Augment(hue=40.0))[:, 0, 0]
    np.testing.assert_allclose(got.mean(-1), np.mean([150, 110, 110]) / 255, atol=1e-5)
    hues = np.array([colorsys.rgb_to_hsv(*row)[0] for row in got.astype(float)])
    turned = (
        hues + 0.5
    ) % 1 - 0.5  # signed, in turns; a pure hue keeps its distance from grey under rotation
    np.testing.assert_allclose(
        np.linalg.norm(got - got.mean(-1, keepdims=True), axis=-1),
        np.linalg.norm([80 / 3, -40 / 3, -40 / 3]) / 255,
        atol=1e-5,
    )
    kept = np.abs(turned) < 1e-4
    assert (
        0.4 < kept.mean() < 0.6
        and 25 < 360 * turned.std() < 55
        and (turned[~kept] > 0).mean() == pytest.approx(0.5, abs=0.15)
    )


def test_contrast_and_brightness_are_affine():
    mid = np.uint8(100 + OPAQUE // 8)
    mid[..., 3] = 255
    x = mid[..., :3] / 255.0
    got = run(mid, Augment(contrast=0.2))
    for row, out in zip(x, got):
        factor = (out - 0.5).ravel() @ (row - 0.5).ravel() / ((row - 0.5) ** 2).sum()
        np.testing.assert_allclose(out, 0.5 + factor * (row - 0.5), atol=1e-5)
    offsets = (run(mid, Augment(brightness=0.05)) - x).reshape(B, -1)
    np.testing.assert_allclose(offsets, np.repeat(offsets[:, :1], offsets.shape[1], 1), atol=1e-5)
    assert offsets[:, 0].std() == pytest.approx(0.05, rel=0.6)


def test_permutation_only_reorders_channels():
    got = run(noise(1, 256, 4, 4, 3), Augment(permute=1.0))
    x = noise(1, 256, 4, 4, 3) / 255.0
    np.testing.assert_allclose(np.sort(got, -1), np.sort(x, -1), atol=1e-6)
    orders = {
        tuple(int(np.abs(got[i, ..., c, None] - x[i]).sum((0, 1)).argmin()) for c in range(3))
        for i in range(256)
    }
    assert len(orders) == 6


def test_inversion_and_posterisation():
    np.testing.assert_allclose(run(OPAQUE, Augment(invert=1.0)), 1 - plain(OPAQUE), atol=1e-6)
    flat = run(OPAQUE, Augment(posterise=1.0))
    assert {len(np.unique(row.round(4))) for row in flat} <= {3, 4, 5} and np.abs(
        flat - plain(OPAQUE)
    ).max() <= 0.25 + 1e-5


def test_background_is_behind_the_picture_only():
    clear = np.zeros((64, 4, 4, 4), np.uint8)
    got = run(clear, Augment(background=0.5), background=(0.0, 0.0, 0.0))
    drawn = got.reshape(64, -1).max(1) > 0
    assert 0.3 < drawn.mean() < 0.7 and (got.std((1, 2)) < 1e-6).all()
    np.testing.assert_array_equal(run(OPAQUE, Augment(background=1.0)), plain(OPAQUE))


# --------------------------------------------------------------------------------------------------
# Lines and focus


def test_blur_is_scipys_gaussian():
    sigma = 1.0
    got = run(OPAQUE, Augment(blur=1.0, blur_sigma=(sigma, sigma)))
    weights = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    weights /= weights.sum()
    expected = OPAQUE[..., :3] / 255.0
    for axis in (1, 2):
        expected = scipy.ndimage.correlate1d(expected, weights, axis=axis, mode="nearest")
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_sharpening_adds_what_blur_takes_away():
    image = smooth()
    image[..., 3] = 255
    image[..., :3] = 64 + image[..., :3] // 2
    got = run(image, Augment(sharpen=1.0))
    x = image[..., :3] / 255.0
    soft = x
    for axis in (1, 2):
        soft = scipy.ndimage.correlate1d(soft, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    for row, out, low in zip(x, got, soft):
        detail = (row - low).ravel()
        amount = (out - row).ravel() @ detail / (detail @ detail)
        assert 0 <= amount <= 2
        np.testing.assert_allclose(out, row + amount * (row - low), atol=1e-4)


def test_cutout_shows_the_background_in_one_square():
    dark = np.zeros((64, S, S, 3), np.uint8)
    hole = run(dark, Augment(cutout=1.0, cutout_side=(0.25, 0.5)))[..., 0]
    assert set(np.unique(hole)) <= {0.0, 1.0}
    for row in hole:
        rows = row.max(1)
        columns = row.max(0)
        np.testing.assert_array_equal(row, np.outer(rows, columns))
        assert 0 < rows.sum() <= 0.5 * S + 1 and 0 < columns.sum() <= 0.5 * S + 1


def test_lines_follow_edges():
    image = np.zeros((B, S, S, 4), np.uint8)
    image[:, 6:18, 6:18] = (255, 200, 0, 255)
    lines = run(image, Augment(line_drawing=1.0))
    assert (lines[:, 10:14, 10:14] == 1).all() and (
        lines[:, :3, :3] == 1
    ).all()  # white inside and outside
    assert (lines[:, 6, 8:16] < 0.2).all() and (np.ptp(lines, axis=-1) == 0).all()
    outlined = run(image, Augment(outline=1.0))
    before = np.asarray(plain(image))
    np.testing.assert_allclose(outlined[:, 11:13, 11:13], before[:, 11:13, 11:13], atol=1e-6)
    assert (outlined <= before + 1e-6).all() and (
        outlined[:, 6, 8:16].sum(-1) < before[:, 6, 8:16].sum(-1) - 0.3
    ).all()


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(flip=1.5), "flip: 1.5 is a probability"),
        (dict(rotate=-1.0), "rotate: -1.0 must be >= 0"),
        (dict(zoom=(0.0, 1.0)), "zoom: "),
        (dict(saturation=(2.0, 1.0)), "saturation: "),
        (dict(blur_sigma=(0.0, 1.0)), "blur_sigma: "),
        (dict(cutout_side=(0.5, 2.0)), "cutout_side: "),
    ],
)
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**values)
