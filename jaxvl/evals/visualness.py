"""Whether a model tells texts that a picture could show from those that none could."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import all_texts, check_column, check_texts, values_of
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import SourceOptions, check_tokenizer


@EVALUATORS.register("visualness")
@dataclasses.dataclass(frozen=True)
class Visualness(SourceOptions):
    """How well 1 - cos(text, null) separates visual texts from others (TIP-CLIP, Verma et al. 2023,
    arXiv 2305.10434, section 4).

    Figures: `auroc`, the share of (visual, other) pairs of texts that the score puts in the right
      order, ties counting half; `visual` and `other`, mean scores; `texts`, `visual_texts`.

    A text that occurs several times counts each time. Pictures are not read.

    Attributes:
      text: a column of texts; the first text of a record counts.
      visual: a column of numbers, > 0 where a record's text is visual.
      null: the model's output of texts that is the null vector (head `null_vector`).
    """

    text: str = "text"
    visual: str = "visual"
    null: str = "null"

    @property
    def figures(self) -> tuple[str, ...]:
        return ("auroc", "visual", "other", "texts", "visual_texts")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        check_column(source, self.visual, ("int", "class", "float"), "visual")
        encoders.check_outputs({"text": encoders.input_shapes["text"]}, (self.null,))

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where all texts are of one kind."""
        source = self.open()
        flags = values_of(source, self.visual)
        rows = [
            (texts[0], flag > 0)
            for texts, flag in zip(all_texts(source, (self.text,)), flags)
            if texts and flag is not None
        ]
        texts = [text for text, _ in rows]
        visual = np.array([flag for _, flag in rows], bool)
        if not 0 < visual.sum() < len(visual):
            raise DataError(
                f"{source.name} has {visual.sum()} visual texts among {len(visual)}; needs both "
                f"kinds"
            )
        null = encoders.texts(texts[:1], output=self.null)[0].astype(np.float64)
        null /= max(np.linalg.norm(null), 1e-12)
        score = 1 - encoders.texts(texts).astype(np.float64) @ null
        found = {
            "auroc": area_under_curve(score, visual),
            "visual": float(score[visual].mean()),
            "other": float(score[~visual].mean()),
            "texts": float(len(texts)),
            "visual_texts": float(visual.sum()),
        }
        return EvalResult(found, [])


def area_under_curve(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of scores [N], of which `positive` bool [N] should be higher.

    It is the rank sum of Mann and Whitney: equal scores share their mean rank.
    """
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    n = int(positive.sum())
    other = len(score) - n
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * other))
