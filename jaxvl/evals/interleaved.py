"""Whether a model that reads rows of several images looks at the right one."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import check
from jaxvl.data.config import Interleave
from jaxvl.data.fields.base import Field
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import check_texts
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.rows import caption, check_rows, picture, rows_of
from jaxvl.evals.source_options import SourceOptions, check_tokenizer

READS = ("caption_lse", "caption_target", "caption_weight", "caption_correct")


@EVALUATORS.register("interleaved")
@dataclasses.dataclass(frozen=True)
class Interleaved(SourceOptions):
    """Caption loss of interleaved rows, with their images as they are and each in the place of the
    next.

    Figures: `loss` and `loss_swapped` in nats per token, their difference `rise`, `token_accuracy`
      and `token_accuracy_swapped`, `rows`.
    There is no gallery.

    Attributes:
      text: the column of the texts.
      interleave: rows, as in training.
    """

    text: str = "text"
    interleave: Interleave = Interleave(records=4)

    def __post_init__(self):
        super().__post_init__()
        k = self.interleave.records
        check(k >= 2, "interleave.records", f"{k!r} must be >= 2, for images to be swapped")

    @property
    def figures(self) -> tuple[str, ...]:
        return ("loss", "loss_swapped", "rise", "token_accuracy", "token_accuracy_swapped", "rows")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        config = check_rows(self, encoders, "interleave", self._fields(encoders), self.interleave)
        encoders.check_outputs(config.shapes, READS)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for a model that writes no captions, DataError where the source has
        less than one row."""
        sums = np.zeros(4)
        tokens = 0.0
        rows = 0
        for batch, n in rows_of(self, encoders, self._fields(encoders), self.interleave):
            swapped = {**batch, "image": np.roll(batch["image"], 1, axis=1)}
            for i, inputs in enumerate((batch, swapped)):
                out = {
                    k: v[:n].astype(np.float64) for k, v in encoders.outputs(inputs, READS).items()
                }
                weight = out["caption_weight"]
                sums[i] += np.sum(weight * (out["caption_lse"] - out["caption_target"]))
                sums[2 + i] += np.sum(weight * out["caption_correct"])
            tokens = tokens + weight.sum()
            rows = rows + n
        loss, swapped_loss, right, swapped_right = (sums / tokens).tolist()
        figures = {"loss": loss, "loss_swapped": swapped_loss, "rise": swapped_loss - loss}
        return EvalResult(
            {
                **figures,
                "token_accuracy": right,
                "token_accuracy_swapped": swapped_right,
                "rows": float(rows),
            },
            [],
        )

    def _fields(self, encoders: Encoders) -> dict[str, Field]:
        """What is read of a record."""
        return {"image": picture(self.image, encoders), "text": caption(self.text, encoders)}
