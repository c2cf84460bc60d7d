"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxvl.config import check
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import Ranks, pad_ids, rank, top_k
from jaxvl.evals.split import (
    SplitOptions,
    Thumbnails,
    captions,
    check_captions,
    check_tokenizer,
    sample,
    skipped_figures,
    text_ids,
)

KS = (1, 5, 10)
SHOWN = 5


@EVALUATORS.register("retrieval")
@dataclasses.dataclass(frozen=True)
class Retrieval(SplitOptions):
    """Retrieval among all images and all captions of a split.

    An image may have several captions and a caption several images. Right answers are known by caption, not by
    position: a text is right for an image if it equals one of the image's captions, and the other way round. A
    query is found at k if any right answer is among the first k (Karpathy & Fei-Fei 2015); ties count by the
    probability of that under random order (`ranking`).

    Figures: `i2t_r@K` and `t2i_r@K` for K = 1, 5, 10 with `i2t_r@1_chance`, `t2i_r@1_chance` (of an encoder that
    knows nothing), `mean_recall` of the six, `i2t_median_rank`, `t2i_median_rank`, `images`, `captions`,
    `skipped/CAUSE`.

    Attributes:
      captions: which texts of a record are captions: its name, its keywords, or all of them, one caption each.
      template: what is made of a caption `{}` before it is encoded.
      merge: whether equal captions are one candidate and one query; else each occurrence is one, as in the literature.
    """

    captions: Literal["name", "keywords", "all"] = "name"
    template: str = "{}"
    merge: bool = False

    def __post_init__(self):
        super().__post_init__()
        check(self.template.count("{}") == 1, "template", f"{self.template!r} must hold '{{}}' once, where the caption goes")

    @property
    def figures(self) -> tuple[str, ...]:
        of_directions = [f"{d}_{figure}" for d in ("i2t", "t2i") for figure in (*(f"r@{k}" for k in KS), "r@1_chance", "median_rank")]
        return (*of_directions, "mean_recall", "images", "captions", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_captions(self.corpus, self.split, self.locale, self.captions)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has both an image and a caption."""
        source, encoded = self.encode(encoders)
        texts_of = captions(self.corpus, self.split, self.locale, self.captions)
        have = np.array([bool(texts_of[i]) for i in encoded.index])
        if not have.any():
            raise DataError(f"split {self.split!r} has no captions ({self.captions}) in locale {self.locale!r}")
        images, index = encoded.rows[have], encoded.index[have]
        owner = [row for row, i in enumerate(index) for _ in texts_of[i]]
        texts = [t for i in index for t in texts_of[i]]
        ids = text_ids(texts)
        image_ids: list[list[int]] = [[] for _ in index]
        for row, i in zip(owner, ids):
            image_ids[row].append(int(i))
        if self.merge:
            _, first = np.unique(ids, return_index=True)
            texts, ids = [texts[i] for i in first], ids[first]
        rows = encoders.texts([self.template.replace("{}", t) for t in texts])

        mesh, of_images = encoders.mesh, pad_ids(image_ids)
        i2t = rank(images, rows, of_images, ids, mesh)
        t2i = rank(rows, images, ids, of_images, mesh)
        metrics = {**_figures("i2t", i2t), **_figures("t2i", t2i)}
        metrics["mean_recall"] = float(np.mean([metrics[f"{d}_r@{k}"] for d in ("i2t", "t2i") for k in KS]))
        metrics |= {"images": float(len(images)), "captions": float(len(texts))}
        metrics |= skipped_figures(encoded.skipped, {f"no caption in locale {self.locale}": int((~have).sum())})

        thumbnail, gallery = Thumbnails(source, encoders.preprocess), []
        if self.gallery:
            picture = lambda row: thumbnail(index[row])
            own = [", ".join(texts_of[i][:3]) for i in index]
            pick = sample(len(images), self.gallery)
            best = top_k(images[pick], rows, SHOWN, mesh)
            for q, scores, found in zip(pick, *best):
                items = _items(scores, found, texts, lambda c, q=q: ids[c] in image_ids[q])
                gallery.append(GalleryRow("Image to text", own[q], picture(q), items, float(i2t.rank()[q])))
            pick = sample(len(texts), self.gallery)
            best = top_k(rows[pick], images, SHOWN, mesh)
            for q, scores, found in zip(pick, *best):
                items = _items(scores, found, own, lambda c, q=q: ids[q] in image_ids[c], picture)
                gallery.append(GalleryRow("Text to image", texts[q], None, items, float(t2i.rank()[q])))
        return EvalResult(metrics, gallery)


def _figures(direction: str, ranks: Ranks) -> dict[str, float]:
    figures = {f"{direction}_r@{k}": float(ranks.recall(k).mean()) for k in KS}
    return {**figures, f"{direction}_r@1_chance": ranks.chance(1), f"{direction}_median_rank": float(np.median(ranks.rank()))}


def _items(scores: np.ndarray, found: np.ndarray, texts: Sequence[str], is_right, picture=lambda c: None) -> tuple[Item, ...]:
    return tuple(Item(texts[c], float(s), bool(is_right(c)), picture(c)) for s, c in zip(scores, found))
