"""Hinge loss of image-text pairs, over all wrong pairs or the hardest."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from jaxvl.config import Range, check
from jaxvl.kernels.contrastive.reductions import Hinge
from jaxvl.kernels.contrastive.scores import Dot
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import pair_metrics, pairs
from jaxvl.objectives.streamed import StreamedObjective


@OBJECTIVES.register("hinge")
@dataclasses.dataclass(frozen=True)
class PairHinge(StreamedObjective):
    """A right pair must be nearer than a wrong one by a margin (Merkx and Frank 2019, arXiv
    1903.11393, equation 5; Faghri et al. 2018, arXiv 1707.05612, equations 5 and 6).

        L = 1/B sum_i [ R_j max(0, margin + x_i . y_j - x_i . y_i)
                      + R_j max(0, margin + x_j . y_i - x_i . y_i) ],    j != i

    R is the sum ("sum") or the maximum ("hardest", VSE++). The papers sum over i; the mean, which
    does not change with the batch size, is not from them.

    Reads image, text: Float[Array, "B D"], unit rows; log_scale, for the log only. Options:
    `StreamedObjective`, of which `duplicates="positive"` is refused: a row has one right pair.
    Config: configs/methods/hinge.py.

    Attributes:
      margin: as above.
      negatives: `sum` or `hardest`.
    """

    margin: Annotated[float, Range(0, 1e6)] = 0.2
    negatives: Literal["sum", "hardest"] = "sum"

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale")

    def __post_init__(self):
        super().__post_init__()
        check(
            self.duplicates != "positive",
            "duplicates",
            "'positive' is not for the hinge, where a row has one right pair; must be 'diagonal' "
            "or 'mask'",
        )
        check(self.margin >= 0, "margin", f"{self.margin!r} must be >= 0")
        check(
            self.negatives in ("sum", "hardest"),
            "negatives",
            f"{self.negatives!r} is not valid; must be sum or hardest",
        )

    def __call__(self, outputs, batch, state, context):
        del context
        reduce = Hinge(self.targets(batch), self.margin, self.negatives)
        found = self.streamed(Dot(), *pairs(outputs), reduce)
        return Loss(found.loss("sum"), pair_metrics(outputs)), state
