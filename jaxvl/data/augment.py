"""Augmentation inside the compiled step: batched, drawn per row from the row's own key.

For photos: `Augment(flip=0.5, hue=25, saturation=(0.2, 1.8), grayscale=0.2, contrast=0.4,
brightness=0.2, blur=0.5)` with `crop=(0.08, 1.0)` of the loader is close to SimCLR's (Chen et al.
2020, appendix A).

Besides place and colour it changes the drawing STYLE (outlines, line drawing, flat colours), for
corpora in which a thing must be known in a style never seen.

Pictures stay RGBA with premultiplied alpha up to the end: then scaling does not bleed hidden
colours, and every change of colour that is affine in straight colour is one 4 x 4 matrix.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Range, check

Angle = Annotated[float, Range(0.0, 3_600.0)]  # degrees
Spread = Annotated[float, Range(0.0, 10.0)]
Factor = Annotated[float, Range(0.0, 1_000.0)]
PROBABILITIES = (
    "flip",
    "grayscale",
    "permute",
    "blur",
    "sharpen",
    "posterise",
    "outline",
    "line_drawing",
    "invert",
    "cutout",
    "background",
)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to a training picture. The defaults do nothing.

    Attributes:
      rotate: standard deviation of the angle, degrees.
      zoom: smallest and largest factor by which the picture is scaled, drawn log-uniformly.
      stretch: standard deviation of the log of the aspect ratio.
      shear: standard deviation of the shear.
      shift: largest shift, as a share of the side.
      flip: probability of a mirror image. Zero where left and right mean something.
      hue: standard deviation of the rotation of the colour circle, degrees; half of the rows keep
        their hue.
      saturation: smallest and largest factor.
      grayscale: probability of no saturation at all.
      contrast: standard deviation of the log of the factor.
      brightness: standard deviation of the offset (values are in 0..1).
      tint: standard deviation of the offset of single channels.
      permute: probability of a random order of the channels.
      blur: probability of a Gaussian blur.
      blur_sigma: smallest and largest standard deviation of the blur, in pixels.
      sharpen: probability of sharpening (what a 3 x 3 blur takes away is added again, up to twice).
      posterise: probability of 2 to 4 flat levels per channel.
      outline: probability of dark lines along edges.
      line_drawing: probability of nothing but dark lines on white.
      invert: probability of the negative.
      cutout: probability that a square of the picture is missing (DeVries & Taylor 2017).
      cutout_side: smallest and largest side of that square, as a share of the picture's.
      background: probability of a random colour behind transparent pictures (else that of
        `preprocess`).
    """

    rotate: Angle = 0.0
    zoom: tuple[Factor, Factor] = (1.0, 1.0)
    stretch: Spread = 0.0
    shear: Spread = 0.0
    shift: Spread = 0.0
    flip: float = 0.0
    hue: Angle = 0.0
    saturation: tuple[Factor, Factor] = (1.0, 1.0)
    grayscale: float = 0.0
    contrast: Spread = 0.0
    brightness: Spread = 0.0
    tint: Spread = 0.0
    permute: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    sharpen: float = 0.0
    posterise: float = 0.0
    outline: float = 0.0
    line_drawing: float = 0.0
    invert: float = 0.0
    cutout: float = 0.0
    cutout_side: tuple[float, float] = (0.1, 0.4)
    background: float = 0.0

    def __post_init__(self):
        for name in PROBABILITIES:
            check(
                0 <= getattr(self, name) <= 1,
                name,
                f"{getattr(self, name)!r} is a probability; must be in [0, 1]",
            )
        for name in (
            "rotate",
            "stretch",
            "shear",
            "shift",
            "hue",
            "contrast",
            "brightness",
            "tint",
        ):
            check(getattr(self, name) >= 0, name, f"{getattr(self, name)!r} must be >= 0")
        for name in ("zoom", "saturation"):
            low, high = getattr(self, name)
            check(
                0 < low <= high or (name == "saturation" and 0 <= low <= high),
                name,
                f"({low!r}, {high!r}) must be a smallest and a largest factor",
            )
        low, high = self.blur_sigma
        check(
            0 < low <= high <= 8,
            "blur_sigma",
            f"({low!r}, {high!r}) must be a smallest and a largest one in (0, 8] pixels",
        )
        low, high = self.cutout_side
        check(
            0 < low <= high <= 1,
            "cutout_side",
            f"({low!r}, {high!r}) must be a smallest and a largest share in (0, 1]",
        )

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        return any((self.rotate, self.stretch, self.shear, self.shift, self.flip)) or self.zoom != (
            1.0,
            1.0,
        )

    @property
    def recolours(self) -> bool:
        return any(
            (self.hue, self.grayscale, self.contrast, self.brightness, self.tint, self.permute)
        ) or self.saturation != (1.0, 1.0)


def plain(images: jax.Array, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> jax.Array:
    """uint8 [..., S, S, 3 or 4] on a background -> float32 [..., S, S, 3] in 0..1."""
    values = images.astype(jnp.float32) * (1 / 255)
    if images.shape[-1] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + (1 - alpha) * jnp.asarray(background, jnp.float32)


def augment(
    images: jax.Array,
    keys: jax.Array,
    config: Augment,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> jax.Array:
    """Augments a batch.

    Args:
      images: uint8 [B, S, S, 3 or 4].
      keys: random keys [B]; a row's result depends on its own key only.
      config: what to do.
      background: colour in 0..1 behind transparent pictures where none is drawn.

    Returns:
      float32 [B, S, S, 3] in 0..1.
    """
    if config == Augment():
        return plain(images, background)
    uniform, normal = _numbers(keys)
    rgba = _premultiplied(images)
    if config.moves:
        rgba = jax.vmap(lambda x, u, n: _warp(x, u, n, config))(rgba, uniform, normal)
    if config.recolours:
        matrices = jax.vmap(lambda u, n: _colour_matrix(u, n, config))(uniform, normal)
        b, s = rgba.shape[:2]
        # A matrix product also keeps the compiler from repeating the gathers above for each use of
        # their result.
        rgba = jnp.einsum("bpc,bcd->bpd", rgba.reshape(b, s * s, 4), matrices).reshape(rgba.shape)
    planes = jnp.moveaxis(
        rgba, -1, 1
    )  # [B, 4, S, S]: rows of pixels vectorise, quartets of channels do not
    if config.blur or config.sharpen:
        planes = _refocus(planes, uniform, config)
    if config.cutout:
        planes = planes * _holes(planes.shape[-1], uniform, config)[:, None]
    return _finish(planes, uniform, config, background)


def affine(keys: jax.Array, config: Augment) -> jax.Array:
    """The map of `augment`'s change of place for the same keys, from a place in the new picture to
    one in the old: float32 [B, 2, 3].

    Places are (x, y, 1) with x and y in -1 … 1 from left to right and from top to bottom.
    """
    return jax.vmap(lambda u, n: _affine(u, n, config))(*_numbers(keys))


def _numbers(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The random numbers of each row: uniform [B, 32] and normal [B, 12]."""
    uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), (32,)))(keys)
    normal = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), (12,)))(keys)
    return uniform, normal


def _premultiplied(images: jax.Array) -> jax.Array:
    values = images.astype(jnp.float32) * (1 / 255)
    if images.shape[-1] == 3:
        return jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
    return jnp.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], -1)


def _warp(image: jax.Array, u: jax.Array, n: jax.Array, config: Augment) -> jax.Array:
    """One picture [S, S, 4] under a random affine map, bilinear; outside it is transparent."""
    s = image.shape[0]
    grid = (jnp.arange(s) + 0.5) * (2 / s) - 1
    x = grid[None, :]
    y = grid[:, None]
    (xx, xy, x0), (yx, yy, y0) = _affine(u, n, config)
    old_x = xx * x + xy * y + x0
    old_y = yx * x + yy * y + y0
    return bilinear(image, (old_y + 1) * (s / 2) - 0.5, (old_x + 1) * (s / 2) - 0.5)


def _affine(u: jax.Array, n: jax.Array, config: Augment) -> jax.Array:
    """float32 [2, 3]; see `affine`."""
    angle = math.radians(config.rotate) * n[0]
    stretch = jnp.exp(config.stretch / 2 * n[1])
    shear = config.shear * n[2]
    low, high = (math.log(z) for z in config.zoom)
    shrink = jnp.exp(
        -(low + (high - low) * u[0])
    )  # the map goes from the new picture to the old one
    mirror = jnp.where(u[3] < config.flip, -1.0, 1.0)
    shift = (u[1:3] - 0.5) * 4 * config.shift
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    across = mirror * shrink * stretch
    down = shrink / stretch
    first = jnp.stack([across * cos, across * (cos * shear - sin), shift[0]])
    second = jnp.stack([down * sin, down * (sin * shear + cos), shift[1]])
    return jnp.stack([first, second])


def bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Samples [S, S, C] at pixel coordinates y, x [T, U] -> [T, U, C]; zero outside."""
    s = image.shape[0]
    c = image.shape[-1]
    y, x = (
        jnp.clip(v, -1, s) for v in (y, x)
    )  # the first places outside are zero already; clipped later, edges would smear
    y0 = jnp.floor(y)
    x0 = jnp.floor(x)
    fy = (y - y0)[..., None]
    fx = (x - x0)[..., None]
    y0, x0 = (
        v.astype(jnp.int32) + 1 for v in (y0, x0)
    )  # one row and column of zeros before the picture
    w = s + 3
    flat = jnp.pad(image, ((1, 2), (1, 2), (0, 0))).reshape(w * w, c)
    i = y0 * w + x0
    return (flat[i] * (1 - fx) + flat[i + 1] * fx) * (1 - fy) + (
        flat[i + w] * (1 - fx) + flat[i + w + 1] * fx
    ) * fy


def _colour_matrix(u: jax.Array, n: jax.Array, config: Augment) -> jax.Array:
    """[4, 4] to multiply premultiplied RGBA rows with: hue, saturation, contrast, brightness,
    tint."""
    angle = math.radians(config.hue) * n[3] * (u[4] < 0.5) * math.sqrt(2)
    cos = jnp.cos(angle)
    sin = jnp.sin(angle) / math.sqrt(3)
    turn = (
        cos * jnp.eye(3) + (1 - cos) / 3 + sin * jnp.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    )  # about the grey axis
    low, high = config.saturation
    saturation = jnp.where(u[5] < config.grayscale, 0.0, low + (high - low) * u[6])
    contrast = jnp.exp(config.contrast * n[4])
    linear = contrast * turn @ (saturation * jnp.eye(3) + (1 - saturation) / 3)
    if config.permute:
        order = jnp.array(list(itertools.permutations(range(3))))[
            jnp.floor(u[20] * 6).astype(jnp.int32)
        ]
        linear = jnp.where(u[19] < config.permute, linear[order], linear)
    offset = 0.5 * (1 - contrast) + config.brightness * n[5] + config.tint * n[6:9]
    colour = jnp.concatenate(
        [linear, offset[:, None]], 1
    )  # the offset counts where there is a picture: times alpha
    return jnp.concatenate([colour, jnp.array([[0.0, 0, 0, 1]])]).T


def _refocus(planes: jax.Array, u: jax.Array, config: Augment) -> jax.Array:
    """Blurs or sharpens [B, 4, S, S] (premultiplied, so that blurred edges fade into the
    background)."""
    if config.blur:
        low, high = config.blur_sigma
        reach = math.ceil(2.5 * high)
        sigma = (low + (high - low) * u[:, 22:23]) * (u[:, 21:22] < config.blur) + 1e-6
        weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
        planes = _convolve(planes, weights / weights.sum(1, keepdims=True))
    if config.sharpen:
        soft = _convolve(planes, jnp.broadcast_to(jnp.array([0.25, 0.5, 0.25]), (len(planes), 3)))
        amount = jnp.where(u[:, 23] < config.sharpen, 2 * u[:, 24], 0.0)[:, None, None, None]
        planes = planes + amount * (planes - soft)
        planes = planes.at[:, 3].set(jnp.clip(planes[:, 3], 0, 1))
    return planes


def _convolve(planes: jax.Array, weights: jax.Array) -> jax.Array:
    """[B, C, S, S] along both sides with each row's own weights [B, 2 * reach + 1]; edge pixels are
    repeated."""
    s = planes.shape[-1]
    reach = weights.shape[1] // 2
    for axis in (2, 3):
        padding = [(0, 0)] * 4
        padding[axis] = (reach, reach)
        padded = jnp.pad(planes, padding, mode="edge")
        parts = (
            weights[:, i, None, None, None] * jax.lax.slice_in_dim(padded, i, i + s, axis=axis)
            for i in range(2 * reach + 1)
        )
        planes = functools.reduce(jnp.add, parts)
    return planes


def _holes(s: int, u: jax.Array, config: Augment) -> jax.Array:
    """float32 [B, S, S]: 0 inside a row's missing square, else 1."""
    low, high = config.cutout_side
    side = (low + (high - low) * u[:, 26]) * (u[:, 25] < config.cutout)
    grid = (jnp.arange(s) + 0.5) / s
    inside = lambda place: jnp.abs(grid - place[:, None]) < side[:, None] / 2
    return 1.0 - (inside(u[:, 27])[:, :, None] & inside(u[:, 28])[:, None, :])


def _edges(plane: jax.Array, reach: int) -> jax.Array:
    """Sum of absolute differences across `2 * reach` pixels in both directions: [B, S, S] -> [B, S,
    S]."""
    s = plane.shape[1]
    padded = jnp.pad(plane, ((0, 0), (reach, reach), (reach, reach)))
    at = lambda dy, dx: padded[:, reach + dy : reach + dy + s, reach + dx : reach + dx + s]
    return jnp.abs(at(0, reach) - at(0, -reach)) + jnp.abs(at(reach, 0) - at(-reach, 0))


def _finish(
    rgba: jax.Array, u: jax.Array, config: Augment, background: tuple[float, float, float]
) -> jax.Array:
    """Planes [B, 4, S, S] -> [B, S, S, 3]: flat colours, background, lines, negative."""
    per_row = lambda i: u[:, i, None, None]
    alpha = rgba[:, 3]
    behind = jnp.where(
        u[:, 7:8] < config.background, u[:, 8:11], jnp.asarray(background, jnp.float32)
    )
    levels = jnp.floor(2 + 3 * per_row(12))
    lines = None
    if config.outline or config.line_drawing:
        grey = jnp.clip(0.3 * rgba[:, 0] + 0.5 * rgba[:, 1] + 0.2 * rgba[:, 2], 0, 1)
        edges = jnp.where(
            per_row(13) < 0.5,
            _edges(grey, 1) + _edges(alpha, 1),
            _edges(grey, 2) + _edges(alpha, 2),
        )
        lines = jnp.clip(edges * (1 + 2 * per_row(14)) - 0.15, 0, 1)
    planes = []
    for c in range(3):
        plane = jnp.clip(rgba[:, c], 0, alpha)
        if config.posterise:
            plane = jnp.where(
                per_row(11) < config.posterise, jnp.round(plane * levels) / levels, plane
            )
        plane = plane + (1 - alpha) * behind[:, c, None, None]
        if lines is not None:
            darkness = jnp.where(per_row(15) < config.outline, 0.3 + 0.7 * per_row(16), 0.0)
            plane = plane * (1 - darkness * lines)
            plane = jnp.where(per_row(17) < config.line_drawing, 1 - lines, plane)
        if config.invert:
            plane = jnp.where(per_row(18) < config.invert, 1 - plane, plane)
        planes.append(jnp.clip(plane, 0, 1))
    return jnp.stack(planes, -1)
