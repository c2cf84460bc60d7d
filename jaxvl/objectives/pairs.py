"""What the image-text objectives share: options, targets from the batch, metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.kernels.contrastive import Diagonal, SameId, Targets
from jaxvl.objectives import Objective


@dataclasses.dataclass(frozen=True)
class PairObjective(Objective):
    """Base of objectives on (image, text) pairs.

    Reads image, text: Float[Array, "B D"], unit rows; log_scale: Float[Array, ""]; where
    `duplicates` asks for it, from the batch group_id: Int[Array, "B"]. Of rows with K images, "B K
    D" and "B K": B K pairs.

    Attributes:
      label_smoothing: in [0, 1).
      duplicates: what other rows with the same `batch["group_id"]` are: "diagonal": negatives like
        any other; "positive": positives too; "mask": neither.
      implementation: of `contrastive_loss`; None: the best that runs here.
    """

    label_smoothing: float = 0.0
    duplicates: Literal["diagonal", "positive", "mask"] = "diagonal"
    implementation: str | None = None

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale")

    def __post_init__(self):
        check(
            0.0 <= self.label_smoothing < 1.0,
            "label_smoothing",
            f"{self.label_smoothing!r} is not valid; must be in [0, 1)",
        )
        known = ("diagonal", "positive", "mask")
        check(
            self.duplicates in known,
            "duplicates",
            f"{self.duplicates!r} is not valid; must be one of {', '.join(known)}",
        )

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return () if self.duplicates == "diagonal" else ("group_id",)

    def targets(self, batch: Mapping[str, jax.Array]) -> Targets:
        """Targets of `contrastive_loss` for this batch."""
        if self.duplicates == "diagonal":
            return Diagonal(label_smoothing=self.label_smoothing)
        return SameId(
            batch["group_id"].reshape(-1),
            duplicates=self.duplicates,
            label_smoothing=self.label_smoothing,
        )


def pairs(outputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Image and text embeddings, one pair a row."""
    return tuple(outputs[k].reshape(-1, outputs[k].shape[-1]) for k in ("image", "text"))


def pair_metrics(outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Scale of the logits, mean cosine of the pairs, and that of all pairs (in closed form; 1 would
    be a collapse)."""
    image, text = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in pairs(outputs))
    return {
        "scale": jnp.exp(jax.lax.stop_gradient(outputs["log_scale"]).astype(jnp.float32)),
        "cosine_pairs": jnp.mean(jnp.sum(image * text, -1)),
        "cosine_all": jnp.dot(image.mean(0), text.mean(0)),
    }
