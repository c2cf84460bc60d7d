"""Captions that the model writes, against those of a split."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.split import (
    SplitOptions,
    Thumbnails,
    captions,
    check_captions,
    open_split,
    same_text,
    sample,
    skipped_figures,
)
from jaxvl.evals.text_scores import SCORES, check_scores
from jaxvl.models.generate import Generation


@EVALUATORS.register("captioning")
@dataclasses.dataclass(frozen=True)
class Captioning(SplitOptions):
    """Writes a caption of every image of a split.

    Figures, means over images, the best of an image's captions counting: `exact` (the same text but for case, width and spacing),
    `token_f1` (words in common: harmonic mean of precision and recall, with repetition; Rajpurkar et al. 2016); `distinct` captions,
    their mean `length` in words, `images`, `skipped/CAUSE`; and those of `scores` (see `evals.text_scores`).

    Attributes:
      captions: which texts of a record are right: its name, its keywords, or all of them; each is a reference.
      more_locales: other languages whose texts are references as well.
      generation: how captions are written.
      scores: `bleu` (1 … 4), `rouge_l`, `meteor` (exact and stem stages), `cider_d`, and `coco`: BLEU, METEOR 1.5, ROUGE-L and CIDEr
        of COCO's toolkit, comparable with papers. `cider_d` needs nothing; `coco` the extra `coco` and Java; the others the extra
        `captioning`.
    """

    captions: Literal["name", "keywords", "all"] = "name"
    more_locales: tuple[str, ...] = ()
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
        super().check(encoders)
        encoders.check_generates(self.generation)
        check_captions(self.corpus, self.split, self.locale, self.captions)
        for i, locale in enumerate(self.more_locales):
            check_captions(self.corpus, self.split, locale, self.captions, f"more_locales[{i}]")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has both an image and a caption, ConfigError for a model that writes none."""
        source = open_split(self.corpus, self.split)
        written, encoded = encoders.captions(source, self.generation)
        self.within_budget(encoded.skipped, len(source))
        languages = [captions(self.corpus, self.split, locale, self.captions) for locale in (self.locale, *self.more_locales)]
        right = [tuple(dict.fromkeys(text for part in parts for text in part)) for parts in zip(*languages)]
        have = [(text, right[i], int(i)) for text, i in zip(written, encoded.index) if right[i]]
        if not have:
            raise DataError(f"split {self.split!r} has no image with a caption ({self.captions}) in locale {self.locale!r}")
        exact = np.array([float(same_text(text) in {same_text(t) for t in texts}) for text, texts, _ in have])
        f1 = np.array([max(token_f1(text, t) for t in texts) for text, texts, _ in have])
        metrics = {
            "exact": float(exact.mean()), "token_f1": float(f1.mean()), "distinct": float(len({same_text(text) for text, _, _ in have})),
            "length": float(np.mean([len(text.split()) for text, _, _ in have])), "images": float(len(have)),
            **skipped_figures(encoded.skipped),
        }  # fmt: skip
        for name in self.scores:
            metrics |= SCORES[name].function([text for text, _, _ in have], [texts for _, texts, _ in have])
        thumbnail = Thumbnails(source, encoders.preprocess)

        def row(q: int) -> GalleryRow:
            text, texts, i = have[q]
            return GalleryRow(
                "Image to caption, token F1", texts[0], thumbnail(i), (Item(text or "(nothing)", float(f1[q]), bool(exact[q])),)
            )

        return EvalResult(metrics, [row(int(q)) for q in sample(len(have), self.gallery)])


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of `text`, in 0 … 1."""
    words: Sequence[collections.Counter] = [collections.Counter(same_text(t).split()) for t in (text, reference)]
    common = (words[0] & words[1]).total()
    return 0.0 if not common else 2 * common / (words[0].total() + words[1].total())
