"""Whether a model that reads rows of several images looks at the right one."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from jaxvl.config import Range, Tokens, check
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.split import SplitOptions, check_captions, check_rows, check_tokenizer, rows_of

READS = ("caption_lse", "caption_target", "caption_weight", "caption_correct")


@EVALUATORS.register("interleaved")
@dataclasses.dataclass(frozen=True)
class Interleaved(SplitOptions):
    """Caption loss of interleaved rows, with their images as they are and each in the place of the next.

    Figures: `loss` and `loss_swapped` in nats per token, their difference `rise`, `token_accuracy` and `token_accuracy_swapped`, `rows`.
    There is no gallery.

    Attributes:
      images_per_row: K, as in training.
      row_length: tokens of a row; None: K times those of a text.
    """

    images_per_row: Annotated[int, Range(2, 1_024)] = 4
    row_length: Tokens | None = None

    def __post_init__(self):
        super().__post_init__()
        check(self.images_per_row >= 2, "images_per_row", f"{self.images_per_row!r} must be >= 2, for images to be swapped")

    @property
    def figures(self) -> tuple[str, ...]:
        return ("loss", "loss_swapped", "rise", "token_accuracy", "token_accuracy_swapped", "rows")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        check_tokenizer(encoders)
        check_captions(self.corpus, self.split, self.locale, "name")
        config = check_rows(self, encoders, "images_per_row", images_per_row=self.images_per_row, row_length=self.row_length)
        encoders.check_outputs(config.shapes, READS)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for a model that writes no captions, DataError where the split has less than one row."""
        sums, tokens, rows = np.zeros(4), 0.0, 0
        for batch, n in rows_of(self, encoders, images_per_row=self.images_per_row, row_length=self.row_length):
            swapped = {**batch, "image": np.roll(batch["image"], 1, axis=1)}
            for i, inputs in enumerate((batch, swapped)):
                out = {k: v[:n].astype(np.float64) for k, v in encoders.outputs(inputs, READS).items()}
                weight = out["caption_weight"]
                sums[i] += np.sum(weight * (out["caption_lse"] - out["caption_target"]))
                sums[2 + i] += np.sum(weight * out["caption_correct"])
            tokens, rows = tokens + weight.sum(), rows + n
        loss, swapped_loss, right, swapped_right = (sums / tokens).tolist()
        figures = {"loss": loss, "loss_swapped": swapped_loss, "rise": swapped_loss - loss}
        return EvalResult({**figures, "token_accuracy": right, "token_accuracy_swapped": swapped_right, "rows": float(rows)}, [])
