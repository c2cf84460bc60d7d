"""Hidden patches of an image, in pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("masked_image")
@dataclasses.dataclass(frozen=True)
class MaskedImage(Objective):
    """Mean squared error of the pixels of hidden patches (He et al. 2022, MAE; text-guided in
    SyCoCa, Ma et al. 2024).

        L = sum_p w_p |y_p - x_p|² / F / sum_p w_p,   x_p: the F pixels of patch p, normalised by
                                                      their own mean and deviation

    Reads patch_prediction: Float[Array, "B P F"], patches in reading order; patch_weight:
    Float[Array, "B P"]; from the batch image: Float[Array, "B S S C"]. Its sums over the patches of
    a row are taken where the encoders run (`per_row`): pictures, and predictions as large as they,
    exist of a chunk of the batch only.

    Attributes:
      normalise: whether x_p are normalised patch by patch; else they are the image's own values.
    """

    normalise: bool = True

    reads: ClassVar[tuple[str, ...]] = ("patch_prediction", "patch_weight")
    batch_keys: ClassVar[tuple[str, ...]] = ("image",)

    def per_row(self, outputs, inputs) -> dict[str, jax.Array]:
        """error: float32 [B], sum_p w_p |y_p - x_p|² / F; hidden: float32 [B], sum_p w_p.

        Raises ValueError where the predicted patches do not tile the image.
        """
        weight = outputs["patch_weight"]
        errors = patch_errors(
            outputs["patch_prediction"], inputs["image"], normalise=self.normalise
        )
        return {"error": (weight * errors).sum(1), "hidden": weight.sum(1)}

    def __call__(self, outputs, batch, state, context):
        del batch, context
        hidden = outputs["hidden"].sum()
        patches = outputs["patch_weight"].size
        return Loss(
            outputs["error"].sum() / jnp.maximum(hidden, 1.0), {"hidden": hidden / patches}
        ), state


def patch_errors(prediction: jax.Array, image: jax.Array, *, normalise: bool = True) -> jax.Array:
    """Mean squared error float32 [B, P] of each patch: prediction [B, P, F], image [B, S, S, C]."""
    target = patches_of(image.astype(jnp.float32), prediction.shape[1])
    if target.shape != prediction.shape:
        raise ValueError(
            f"patch_prediction: {prediction.shape} does not tile images of {image.shape}; "
            f"must be {target.shape}"
        )
    if normalise:
        mean = target.mean(-1, keepdims=True)
        variance = target.var(-1, keepdims=True)
        target = (target - mean) * jax.lax.rsqrt(
            variance + 1e-6
        )  # a patch of one colour becomes zeros
    return jnp.square(prediction.astype(jnp.float32) - target).mean(-1)


def patches_of(image: jax.Array, count: int) -> jax.Array:
    """[B, S, S, C] -> [B, P, p² C]: `count` = P patches in reading order. Raises ValueError where
    they do not tile the image."""
    b, s, _, c = image.shape
    grid = math.isqrt(count)
    if grid * grid != count or s % grid:
        raise ValueError(f"{count} patches do not tile an image of {s} pixels a side")
    p = s // grid
    return (
        image.reshape(b, grid, p, grid, p, c)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(b, count, p * p * c)
    )
