"""Captions that the model writes, against those of a source."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxvl.data.fields.numbers import same_text
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import Columns, all_texts, check_texts, listed
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import SourceOptions, sample, skipped_figures
from jaxvl.evals.text_scores import SCORES, check_scores
from jaxvl.evals.thumbnails import Thumbnails
from jaxvl.models.generate import Generation


@EVALUATORS.register("captioning")
@dataclasses.dataclass(frozen=True)
class Captioning(SourceOptions):
    """Writes a caption of every image of a source.

    Figures, means over images, the best of an image's captions counting: `exact` (the same text but
    for case, width and spacing), `token_f1` (words in common: harmonic mean of precision and
    recall, with repetition; Rajpurkar et al. 2016); `distinct` captions, their mean `length` in
    words, `images`, `skipped/CAUSE`; and those of `scores` (see `evals.text_scores`).

    Attributes:
      references: a column of texts, or several (other languages, say); each text of a record is a
        reference.
      generation: how captions are written.
      scores: `bleu` (1 … 4), `rouge_l`, `meteor` (exact and stem stages), `cider_d`, and `coco`:
        BLEU, METEOR 1.5, ROUGE-L and CIDEr of COCO's toolkit, comparable with papers. `cider_d`
        needs nothing; `coco` the extra `coco` and Java; the others the extra `captioning`.
    """

    references: Columns = "text"
    generation: Generation = Generation()
    scores: tuple[Literal["bleu", "rouge_l", "meteor", "cider_d", "coco"], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_scores(self.scores)

    @property
    def figures(self) -> tuple[str, ...]:
        of_scores = [figure for name in self.scores for figure in SCORES[name].figures]
        return ("exact", "token_f1", "distinct", "length", "images", *of_scores, "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_generates(self.generation)
        check_texts(source, self.references, "references")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has both an image and a caption, ConfigError for a model
        that writes none."""
        source = self.open()
        written, encoded = encoders.captions(source, self.generation, column=self.image)
        self.within_budget(encoded.skipped, source)
        right = all_texts(source, listed(self.references))
        have = [(text, right[i], int(i)) for text, i in zip(written, encoded.index) if right[i]]
        if not have:
            raise DataError(
                f"{source.name} has no image with a caption ({', '.join(listed(self.references))})"
            )
        exact = np.array(
            [float(same_text(text) in {same_text(t) for t in texts}) for text, texts, _ in have]
        )
        f1 = np.array([max(token_f1(text, t) for t in texts) for text, texts, _ in have])
        metrics = {
            "exact": float(exact.mean()),
            "token_f1": float(f1.mean()),
            "distinct": float(len({same_text(text) for text, _, _ in have})),
            "length": float(np.mean([len(text.split()) for text, _, _ in have])),
            "images": float(len(have)),
            **skipped_figures(encoded.skipped),
        }
        for name in self.scores:
            metrics |= SCORES[name].function(
                [text for text, _, _ in have], [texts for _, texts, _ in have]
            )
        thumbnail = Thumbnails(source, encoders.preprocess, self.image)

        def row(q: int) -> GalleryRow:
            text, texts, i = have[q]
            return GalleryRow(
                "Image to caption, token F1",
                texts[0],
                thumbnail(i),
                (Item(text or "(nothing)", float(f1[q]), bool(exact[q])),),
            )

        return EvalResult(metrics, [row(int(q)) for q in sample(len(have), self.gallery)])


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of `text`, in 0 … 1."""
    words: Sequence[collections.Counter] = [
        collections.Counter(same_text(t).split()) for t in (text, reference)
    ]
    common = (words[0] & words[1]).total()
    return 0.0 if not common else 2 * common / (words[0].total() + words[1].total())
