"""Augmentation on the devices: batched, inside the compiled step, drawn per row from that row's own key.

Besides place and colour it changes the drawing STYLE (outlines, line drawing, flat colours), for corpora in which a
thing must be known in a style never seen.

Pictures stay RGBA with premultiplied alpha up to the end: then scaling does not bleed hidden colours, and every change
of colour that is affine in straight colour is one 4 x 4 matrix.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxvl.config import check


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
      hue: standard deviation of the rotation of the colour circle, degrees; half of the rows keep their hue.
      saturation: smallest and largest factor.
      grayscale: probability of no saturation at all.
      contrast: standard deviation of the log of the factor.
      brightness: standard deviation of the offset (values are in 0..1).
      tint: standard deviation of the offset of single channels.
      posterise: probability of 2 to 4 flat levels per channel.
      outline: probability of dark lines along edges.
      line_drawing: probability of nothing but dark lines on white.
      invert: probability of the negative.
      background: probability of a random colour behind transparent pictures (else that of `preprocess`).
    """

    rotate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    hue: float = 0.0
    saturation: tuple[float, float] = (1.0, 1.0)
    grayscale: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    tint: float = 0.0
    posterise: float = 0.0
    outline: float = 0.0
    line_drawing: float = 0.0
    invert: float = 0.0
    background: float = 0.0

    def __post_init__(self):
        for name in ("flip", "grayscale", "posterise", "outline", "line_drawing", "invert", "background"):
            check(0 <= getattr(self, name) <= 1, name, f"{getattr(self, name)!r} is a probability; must be in [0, 1]")
        for name in ("rotate", "stretch", "shear", "shift", "hue", "contrast", "brightness", "tint"):
            check(getattr(self, name) >= 0, name, f"{getattr(self, name)!r} must be >= 0")
        for name in ("zoom", "saturation"):
            low, high = getattr(self, name)
            check(0 < low <= high or (name == "saturation" and 0 <= low <= high), name, f"({low!r}, {high!r}) must be a smallest and a largest factor")

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        return any((self.rotate, self.stretch, self.shear, self.shift, self.flip)) or self.zoom != (1.0, 1.0)

    @property
    def recolours(self) -> bool:
        return any((self.hue, self.grayscale, self.contrast, self.brightness, self.tint)) or self.saturation != (1.0, 1.0)


def plain(images: jax.Array, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> jax.Array:
    """uint8 [..., S, S, 3 or 4] on a background -> float32 [..., S, S, 3] in 0..1."""
    values = images.astype(jnp.float32) * (1 / 255)
    if images.shape[-1] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + (1 - alpha) * jnp.asarray(background, jnp.float32)


def augment(images: jax.Array, keys: jax.Array, config: Augment, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> jax.Array:
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
    uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), (24,)))(keys)
    normal = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), (12,)))(keys)
    rgba = _premultiplied(images)
    if config.moves:
        rgba = jax.vmap(lambda x, u, n: _warp(x, u, n, config))(rgba, uniform, normal)
    if config.recolours:
        matrices = jax.vmap(lambda u, n: _colour_matrix(u, n, config))(uniform, normal)
        b, s = rgba.shape[:2]
        # A matrix product also keeps the compiler from repeating the gathers above for each use of their result.
        rgba = jnp.einsum("bpc,bcd->bpd", rgba.reshape(b, s * s, 4), matrices).reshape(rgba.shape)
    return _finish(jnp.moveaxis(rgba, -1, 1), uniform, config, background)


def _premultiplied(images: jax.Array) -> jax.Array:
    values = images.astype(jnp.float32) * (1 / 255)
    if images.shape[-1] == 3:
        return jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
    return jnp.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], -1)


def _warp(image: jax.Array, u: jax.Array, n: jax.Array, config: Augment) -> jax.Array:
    """One picture [S, S, 4] under a random affine map, bilinear; outside it is transparent."""
    s = image.shape[0]
    angle, stretch, shear = math.radians(config.rotate) * n[0], jnp.exp(config.stretch / 2 * n[1]), config.shear * n[2]
    low, high = (math.log(z) for z in config.zoom)
    shrink = jnp.exp(-(low + (high - low) * u[0]))  # the map goes from the new picture to the old one
    mirror = jnp.where(u[3] < config.flip, -1.0, 1.0)
    shift = (u[1:3] - 0.5) * 4 * config.shift
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    grid = (jnp.arange(s) + 0.5) * (2 / s) - 1
    x, y = grid[None, :], grid[:, None]
    old_x = mirror * shrink * stretch * (cos * x + (cos * shear - sin) * y) + shift[0]
    old_y = shrink / stretch * (sin * x + (sin * shear + cos) * y) + shift[1]
    return bilinear(image, (old_y + 1) * (s / 2) - 0.5, (old_x + 1) * (s / 2) - 0.5)


def bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Samples [S, S, C] at pixel coordinates y, x [T, U] -> [T, U, C]; zero outside."""
    s, c = image.shape[0], image.shape[-1]
    y0, x0 = jnp.floor(y), jnp.floor(x)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    y0, x0 = (jnp.clip(v.astype(jnp.int32), -1, s) + 1 for v in (y0, x0))  # one row and column of zeros before the picture
    w = s + 3
    flat = jnp.pad(image, ((1, 2), (1, 2), (0, 0))).reshape(w * w, c)
    i = y0 * w + x0
    return (flat[i] * (1 - fx) + flat[i + 1] * fx) * (1 - fy) + (flat[i + w] * (1 - fx) + flat[i + w + 1] * fx) * fy


def _colour_matrix(u: jax.Array, n: jax.Array, config: Augment) -> jax.Array:
    """[4, 4] to multiply premultiplied RGBA rows with: hue, saturation, contrast, brightness, tint."""
    angle = math.radians(config.hue) * n[3] * (u[4] < 0.5) * math.sqrt(2)
    cos, sin = jnp.cos(angle), jnp.sin(angle) / math.sqrt(3)
    turn = cos * jnp.eye(3) + (1 - cos) / 3 + sin * jnp.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])  # about the grey axis
    low, high = config.saturation
    saturation = jnp.where(u[5] < config.grayscale, 0.0, low + (high - low) * u[6])
    contrast = jnp.exp(config.contrast * n[4])
    linear = contrast * turn @ (saturation * jnp.eye(3) + (1 - saturation) / 3)
    offset = 0.5 * (1 - contrast) + config.brightness * n[5] + config.tint * n[6:9]
    colour = jnp.concatenate([linear, offset[:, None]], 1)  # the offset counts where there is a picture: times alpha
    return jnp.concatenate([colour, jnp.array([[0.0, 0, 0, 1]])]).T


def _edges(plane: jax.Array, reach: int) -> jax.Array:
    """Sum of absolute differences across `2 * reach` pixels in both directions: [B, S, S] -> [B, S, S]."""
    s = plane.shape[1]
    padded = jnp.pad(plane, ((0, 0), (reach, reach), (reach, reach)))
    at = lambda dy, dx: padded[:, reach + dy : reach + dy + s, reach + dx : reach + dx + s]
    return jnp.abs(at(0, reach) - at(0, -reach)) + jnp.abs(at(reach, 0) - at(-reach, 0))


def _finish(rgba: jax.Array, u: jax.Array, config: Augment, background: tuple[float, float, float]) -> jax.Array:
    """Planes [B, 4, S, S] -> [B, S, S, 3]: flat colours, background, lines, negative."""
    per_row = lambda i: u[:, i, None, None]
    alpha = rgba[:, 3]
    behind = jnp.where(u[:, 7:8] < config.background, u[:, 8:11], jnp.asarray(background, jnp.float32))
    levels = jnp.where(per_row(11) < config.posterise, jnp.floor(2 + 3 * per_row(12)), 255.0)
    lines = None
    if config.outline or config.line_drawing:
        grey = jnp.clip(0.3 * rgba[:, 0] + 0.5 * rgba[:, 1] + 0.2 * rgba[:, 2], 0, 1)
        edges = jnp.where(per_row(13) < 0.5, _edges(grey, 1) + _edges(alpha, 1), _edges(grey, 2) + _edges(alpha, 2))
        lines = jnp.clip(edges * (1 + 2 * per_row(14)) - 0.15, 0, 1)
    planes = []
    for c in range(3):
        plane = jnp.clip(rgba[:, c], 0, alpha)
        if config.posterise:
            plane = jnp.round(plane * levels) / levels
        plane = plane + (1 - alpha) * behind[:, c, None, None]
        if lines is not None:
            darkness = jnp.where(per_row(15) < config.outline, 0.3 + 0.7 * per_row(16), 0.0)
            plane = plane * (1 - darkness * lines)
            plane = jnp.where(per_row(17) < config.line_drawing, 1 - lines, plane)
        if config.invert:
            plane = jnp.where(per_row(18) < config.invert, 1 - plane, plane)
        planes.append(jnp.clip(plane, 0, 1))
    return jnp.stack(planes, -1)
