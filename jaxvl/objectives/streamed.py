"""What the objectives over scores of pairs share (`kernels.contrastive.streamed_scores`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax

from jaxvl.aliases import Tree
from jaxvl.config import Count, check
from jaxvl.kernels.contrastive import Diagonal, SameId, Targets
from jaxvl.kernels.contrastive.generic import Reduced, Reduction, Score, streamed_scores
from jaxvl.kernels.contrastive.scores import Tokens
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import Objective


@dataclasses.dataclass(frozen=True)
class StreamedObjective(Objective):
    """Base of objectives on (image, text) pairs whose loss the fused core has not.

    Reads, where `duplicates` asks for it, from the batch group_id: Int[Array, "B"].

    Attributes:
      duplicates: what other rows with the same `batch["group_id"]` are: "diagonal": negatives like
        any other; "positive": positives too; "mask": neither.
      block: rows and columns of the largest block of scores that is held at a time.
    """

    duplicates: Literal["diagonal", "positive", "mask"] = "diagonal"
    block: Count = 256

    def __post_init__(self):
        check(self.block >= 1, "block", f"{self.block!r} must be >= 1")
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
        """Which pairs of this batch are positive, and which compete."""
        if self.duplicates == "diagonal":
            return Diagonal()
        return SameId(batch["group_id"].reshape(-1), duplicates=self.duplicates)

    def streamed(self, score: Score, u: Tree, v: Tree, reduce: Reduction) -> Reduced:
        """`streamed_scores` in blocks of this objective's size."""
        return streamed_scores(score, u, v, reduce, self.block)


def tokens(outputs: Mapping[str, jax.Array], name: str) -> Tokens:
    """The output `name`, Float[Array, "B T D"], as unit vectors, with the output `NAME_mask`,
    Bool[Array, "B T"], where the model gives one."""
    found = l2_normalize(outputs[name])
    if found.ndim != 3:
        raise ValueError(f"{name}: shape {found.shape} is not valid; must be (rows, tokens, width)")
    return Tokens(found, outputs.get(f"{name}_mask"))
