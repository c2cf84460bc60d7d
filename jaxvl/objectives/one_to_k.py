"""Contrast of a picture with its texts in K languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.kernels.contrastive import KPerRow, PairMask, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Masks, Objective, whole_rows


@OBJECTIVES.register("one_to_k")
@dataclasses.dataclass(frozen=True)
class OneToK(Objective):
    """1-to-K contrast of CCRK (Nie et al. 2024, arXiv 2406.18254, equation 4; its released code):
    all K texts of a picture are positive at once, and the texts of all others negative.

        s_ijk = exp(log_scale) x_i . t_jk
        L_x   = - mean_i  1/K sum_k log softmax_jk'(s_ijk')_{i, k}
        L_t   = - mean_ik log softmax_j(s_jik)_i
        balanced:  L = (L_x + L_t) / 2;      release:  L = (L_x + L_t / K) / 2

    The released code sums the first half over the K texts and then divides both halves by K, so
    that the second weighs 1/K of the first. With K = 1 both are CLIP's loss.

    Reads the outputs named by `image`: Float[Array, "B D"]; by `texts`: Float[Array, "B D"] each,
    or one Float[Array, "B K D"]; by `scale`: Float[Array, ""]. Where the batch has `has_NAME`:
    Bool[Array, "B"] of one of `texts`, rows without this text have one language less: its place
    neither anchors nor competes, and the others share the picture's target. Rows without a
    picture, by `has_image`, have none.

    Attributes:
      image, texts, scale: names of model outputs; `("text_en", "text_de")` are two fields, and
        `("text",)` with `fields.text.count` K and `different` is one.
      reduction: see above; `release` is what was published.
      label_smoothing: in [0, 1); not from the paper.
      implementation: of `contrastive_loss`.
    """

    image: str = "image"
    texts: tuple[str, ...] = ("text",)
    scale: str = "log_scale"
    reduction: Literal["release", "balanced"] = "release"
    label_smoothing: float = 0.0
    implementation: str | None = None

    masks_missing: ClassVar[Masks] = "by batch"

    def __post_init__(self):
        check(bool(self.texts), "texts", "must name at least one model output")
        check(
            len(set(self.texts)) == len(self.texts),
            "texts",
            f"{list(self.texts)!r} must be different outputs",
        )
        known = ("release", "balanced")
        check(
            self.reduction in known,
            "reduction",
            f"{self.reduction!r} is not valid; must be one of {', '.join(known)}",
        )
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, *self.texts, self.scale)

    def __call__(self, outputs, batch, state, context):
        del context
        image = outputs[self.image]
        image = image[:, 0] if image.ndim == 3 and image.shape[1] == 1 else image
        texts = self._texts(outputs)
        b, k, width = texts.shape
        targets = KPerRow(k, reduction=self.reduction, label_smoothing=self.label_smoothing)
        there = self._there(outputs, batch)
        if there is not None:
            targets = PairMask(targets, row_valid=there.any(1), col_valid=there.reshape(-1))
        loss = contrastive_loss(
            image,
            texts.reshape(b * k, width),
            outputs[self.scale],
            targets=targets,
            implementation=self.implementation,
        )
        own = jax.lax.stop_gradient(jnp.einsum("bd,bkd->bk", image, texts))
        metrics = {
            "scale": jnp.exp(jax.lax.stop_gradient(outputs[self.scale])),
            "cosine_pairs": own.mean(),
            "cosine_deviation": own.std(1).mean(),  # of a picture's languages
        }
        return Loss(loss, metrics), state

    def _texts(self, outputs: Mapping[str, jax.Array]) -> jax.Array:
        """All texts of a row, [B, K, D]."""
        found = [outputs[name] for name in self.texts]
        return jnp.concatenate([x if x.ndim == 3 else x[:, None] for x in found], 1)

    def _there(self, outputs, batch: Mapping[str, jax.Array]) -> jax.Array | None:
        """Which texts a row has, and a picture for them, bool [B, K]; None where all rows have
        all."""
        masks = [whole_rows(outputs, batch, (self.image, name)) for name in self.texts]
        if all(mask is None for mask in masks):
            return None
        found = []
        for name, mask in zip(self.texts, masks):
            x = outputs[name]
            count = x.shape[1] if x.ndim == 3 else 1
            mask = jnp.ones(len(x), bool) if mask is None else mask
            found.append(jnp.repeat(mask[:, None], count, 1))
        return jnp.concatenate(found, 1)
