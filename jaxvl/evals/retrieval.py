"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import Columns, all_texts, check_texts, groups_of, listed, text_ids
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import Ranks, pad_ids, rank, top_k
from jaxvl.evals.source_options import (
    SourceOptions,
    check_template,
    check_tokenizer,
    sample,
    skipped_figures,
)
from jaxvl.evals.thumbnails import Thumbnails

KS = (1, 5, 10)
SHOWN = 5


class Captions(NamedTuple):
    """Texts, and the ids by which right answers are known: a text and a picture that share one
    belong together.

    Attributes:
      texts: each a candidate and a query.
      of_texts: ids of each text; several where equal texts of several groups are merged.
      of_images: ids of each picture.
    """

    texts: list[str]
    of_texts: list[list[int]]
    of_images: list[list[int]]


@EVALUATORS.register("retrieval")
@dataclasses.dataclass(frozen=True)
class Retrieval(SourceOptions):
    """Retrieval among all images and all captions of a source.

    An image may have several captions and a caption several images. Right answers are known by
    caption, not by position: a text is right for an image if it equals one of the image's captions,
    and the other way round. With `group` they are known by that alone. A query is found at k if any
    right answer is among the first k (Karpathy & Fei-Fei 2015); ties count by the probability of
    that under random order (`ranking`).

    Figures: `i2t_r@K` and `t2i_r@K` for K = 1, 5, 10 with `i2t_r@1_chance`, `t2i_r@1_chance` (of an
      encoder that
    knows nothing), `mean_recall` of the six, `i2t_median_rank`, `t2i_median_rank`, `images`,
    `captions`, `skipped/CAUSE`.

    Attributes:
      text: a column of texts, or several; each distinct text of a record is one caption.
      group: a column (`image_id`) whose equal values are right answers for each other; None: equal
        captions are.
      template: what is made of a caption `{}` before it is encoded.
      merge: whether equal captions are one candidate and one query; else each occurrence is one, as
        in the literature.
      outputs: outputs of the model that are compared, of pictures and of texts, such as those of
        heads; None: the embeddings.
    """

    text: Columns = "text"
    group: str | None = None
    template: str = "{}"
    merge: bool = False
    outputs: tuple[str, str] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_template(self.template, "caption")

    @property
    def figures(self) -> tuple[str, ...]:
        of_directions = [
            f"{d}_{figure}"
            for d in ("i2t", "t2i")
            for figure in (*(f"r@{k}" for k in KS), "r@1_chance", "median_rank")
        ]
        return (*of_directions, "mean_recall", "images", "captions", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        if self.group is not None:
            groups_of(source, self.group)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has both an image and a caption."""
        of_image, of_text = self.outputs or (None, None)
        source, encoded = self.encode(encoders, of_image)
        texts_of = all_texts(source, listed(self.text))
        have = np.array([bool(texts_of[i]) for i in encoded.index])
        if not have.any():
            raise DataError(
                f"{source.name} has no image with a caption ({', '.join(listed(self.text))})"
            )
        images = encoded.rows[have]
        index = encoded.index[have]
        captions = self._captions(source, [texts_of[i] for i in index], index)
        rows = encoders.texts(
            [self.template.replace("{}", t) for t in captions.texts], output=of_text
        )

        mesh = encoders.mesh
        of_images = pad_ids(captions.of_images)
        of_texts = pad_ids(captions.of_texts)
        i2t = rank(images, rows, of_images, of_texts, mesh)
        t2i = rank(rows, images, of_texts, of_images, mesh)
        metrics = {**_figures("i2t", i2t), **_figures("t2i", t2i)}
        metrics["mean_recall"] = float(
            np.mean([metrics[f"{d}_r@{k}"] for d in ("i2t", "t2i") for k in KS])
        )
        metrics |= {"images": float(len(images)), "captions": float(len(rows))}
        metrics |= skipped_figures(encoded.skipped, {"no caption": int((~have).sum())})
        if not self.gallery:
            return EvalResult(metrics, [])

        thumbnail = Thumbnails(source, encoders.preprocess, self.image)
        picture = lambda row: thumbnail(index[row])
        is_right = lambda row, c: not set(captions.of_images[row]).isdisjoint(captions.of_texts[c])
        own = [", ".join(texts_of[i][:3]) for i in index]
        gallery = []
        pick = sample(len(images), self.gallery)
        best = top_k(images[pick], rows, SHOWN, mesh)
        for q, scores, found in zip(pick, *best):
            items = _items(scores, found, captions.texts, lambda c, q=q: is_right(q, c))
            gallery.append(
                GalleryRow("Image to text", own[q], picture(q), items, float(i2t.rank()[q]))
            )
        pick = sample(len(rows), self.gallery)
        best = top_k(rows[pick], images, SHOWN, mesh)
        for q, scores, found in zip(pick, *best):
            items = _items(scores, found, own, lambda row, q=q: is_right(row, q), picture)
            gallery.append(
                GalleryRow("Text to image", captions.texts[q], None, items, float(t2i.rank()[q]))
            )
        return EvalResult(metrics, gallery)

    def _captions(
        self, source: Source, texts_of: Sequence[Sequence[str]], index: np.ndarray
    ) -> Captions:
        """Candidates of the records at `index`, whose texts are `texts_of`."""
        owner = [row for row, of in enumerate(texts_of) for _ in of]
        texts = [text for of in texts_of for text in of]
        same = text_ids(texts)
        of_images: list[list[int]]
        if self.group is None:
            of_texts = [[int(i)] for i in same]
            of_images = [[] for _ in index]
            for row, i in zip(owner, same):
                of_images[row].append(int(i))
        else:
            groups = groups_of(source, self.group)[index]
            of_texts = [[int(groups[row])] for row in owner]
            of_images = [[int(group)] for group in groups]
        if not self.merge:
            return Captions(texts, of_texts, of_images)
        merged: dict[int, tuple[str, dict[int, None]]] = {}
        for text, i, ids in zip(texts, same.tolist(), of_texts):
            merged.setdefault(i, (text, {}))[1].update(dict.fromkeys(ids))
        return Captions(
            [text for text, _ in merged.values()],
            [list(ids) for _, ids in merged.values()],
            of_images,
        )


def _figures(direction: str, ranks: Ranks) -> dict[str, float]:
    figures = {f"{direction}_r@{k}": float(ranks.recall(k).mean()) for k in KS}
    return {
        **figures,
        f"{direction}_r@1_chance": ranks.chance(1),
        f"{direction}_median_rank": float(np.median(ranks.rank())),
    }


def _items(
    scores: np.ndarray,
    found: np.ndarray,
    texts: Sequence[str],
    is_right: Callable[[int], bool],
    picture: Callable[[int], bytes | None] = lambda c: None,
) -> tuple[Item, ...]:
    return tuple(Item(texts[c], float(s), is_right(c), picture(c)) for s, c in zip(scores, found))
