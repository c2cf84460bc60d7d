"""What a text tells a model of the hidden patches of an image.

And whether the model hides those patches that show the thing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import check
from jaxvl.data.augment import plain
from jaxvl.data.fields.base import Field
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import check_texts
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.rows import caption, check_rows, picture, rows_of
from jaxvl.evals.source_options import SourceOptions, check_tokenizer
from jaxvl.evals.thumbnails import THUMBNAIL, png
from jaxvl.objectives.masked_image import patch_errors, patches_of

READS = ("patch_prediction", "patch_weight", "patch_scores")
DRAWS = 32  # random masks per image, of which the expected overlap is taken


@EVALUATORS.register("masked_image")
@dataclasses.dataclass(frozen=True)
class MaskedImages(SourceOptions):
    """Error of reconstructed patches under the image's own text and another's, the patches being
    the same.

    Figures: `error` and `error_other_text`, mean squared errors of the hidden patches' normalised
      pixels, averaged over images whose
    other text is not the same one, and `gain` = 1 - error / error_other_text. Where pictures are
    transparent around the thing they show: `hit`, the share of hidden patches that show it, `iou`
    of the hidden patches and those that show it, and the same of patches hidden at random,
    `hit_random` (in closed form) and `iou_random` (of `DRAWS` draws). `images`.

    Attributes:
      text: the column of the texts.
      shown: least share of opaque pixels with which a patch shows the thing.
    """

    text: str = "text"
    shown: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.shown <= 1, "shown", f"{self.shown!r} is a share; must be in (0, 1]")

    @property
    def figures(self) -> tuple[str, ...]:
        return (
            "error",
            "error_other_text",
            "gain",
            "hit",
            "hit_random",
            "iou",
            "iou_random",
            "images",
        )

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        encoders.check_outputs(
            check_rows(self, encoders, "source", self._fields(encoders)).shapes, READS
        )

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for a model that has no hidden patches."""
        figures = []
        gallery = []
        for batch, n in rows_of(self, encoders, self._fields(encoders)):
            out = encoders.outputs(batch, READS)
            other_text = np.concatenate([np.roll(batch["text"][:n], 1, axis=0), batch["text"][n:]])
            inputs = {**batch, "text": other_text, "patch_scores": out["patch_scores"]}
            other = encoders.outputs(inputs, ("patch_prediction",))["patch_prediction"]
            image = np.asarray(
                encoders.preprocess.normalise(plain(batch["image"], encoders.preprocess.background))
            )
            hidden = out["patch_weight"] > 0
            errors = [
                _mean(np.asarray(patch_errors(p, image)), hidden)
                for p in (out["patch_prediction"], other)
            ]
            differs = (other_text != batch["text"]).any(1)
            shows = (
                np.asarray(patches_of(batch["image"][..., 3:] > 127, hidden.shape[1])).mean(-1)
                >= self.shown
            )
            figures.append([a[:n] for a in (*errors, differs, *overlap(hidden, shows))])
            for q in range(min(n, self.gallery - len(gallery))):
                gallery.append(
                    self._row(
                        encoders,
                        batch,
                        other_text,
                        image,
                        hidden,
                        (out["patch_prediction"], other),
                        errors,
                        q,
                    )
                )
        own, wrong, differs, hit, iou, hit_random, iou_random = map(np.concatenate, zip(*figures))
        metrics = {
            "error": float(own[differs].mean()),
            "error_other_text": float(wrong[differs].mean()),
        }
        metrics["gain"] = 1 - metrics["error"] / metrics["error_other_text"]
        if (hit_random < 1).any():
            overlaps = dict(hit=hit, hit_random=hit_random, iou=iou, iou_random=iou_random)
            metrics |= {k: float(v.mean()) for k, v in overlaps.items()}
        return EvalResult({**metrics, "images": float(len(own))}, gallery)

    def _fields(self, encoders: Encoders) -> dict[str, Field]:
        """What is read of a record."""
        return {"image": picture(self.image, encoders), "text": caption(self.text, encoders)}

    def _row(
        self, encoders, batch, other_text, image, hidden, predictions, errors, q: int
    ) -> GalleryRow:
        """The image with its hidden patches grey, and as both texts complete it."""
        mean, std = (
            np.asarray(v, np.float32) for v in (encoders.preprocess.mean, encoders.preprocess.std)
        )
        texts = encoders.tokenizer.decode(np.stack([batch["text"][q], other_text[q]]))

        def drawn(values: np.ndarray) -> bytes:
            return png(
                (np.clip(_join(values) * std + mean, 0, 1) * 255).astype(np.uint8), THUMBNAIL
            )

        patches = np.asarray(patches_of(image[q : q + 1], hidden.shape[1]))[0]
        level = patches.mean(-1, keepdims=True)
        spread = patches.std(-1, keepdims=True)
        over = hidden[q][:, None]
        items = [Item("hidden", 0.0, True, drawn(np.where(over, 0.0, patches)))]
        for text, prediction, error, right in zip(texts, predictions, errors, (True, False)):
            items.append(
                Item(
                    text,
                    float(error[q]),
                    right,
                    drawn(np.where(over, prediction[q] * spread + level, patches)),
                )
            )
        return GalleryRow(
            "Hidden patches, completed by a text",
            texts[0],
            drawn(patches),
            tuple(items),
            note="The figures are errors.",
        )


def overlap(
    hidden: np.ndarray, shows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(hit, iou, hit at random, iou at random), each [B], of bool [B, P]; see `MaskedImages`."""
    random = np.random.default_rng(0).permuted(
        np.broadcast_to(hidden, (DRAWS, *hidden.shape)), axis=2
    )

    def iou(mask: np.ndarray) -> np.ndarray:
        return (mask & shows).sum(-1) / (mask | shows).sum(-1)

    return (hidden & shows).sum(1) / hidden.sum(1), iou(hidden), shows.mean(1), iou(random).mean(0)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return (values * where).sum(1) / where.sum(1)


def _join(patches: np.ndarray) -> np.ndarray:
    """[P, p² 3] -> [S, S, 3]."""
    grid = round(len(patches) ** 0.5)
    p = round((patches.shape[1] / 3) ** 0.5)
    return (
        patches.reshape(grid, grid, p, p, 3).transpose(0, 2, 1, 3, 4).reshape(grid * p, grid * p, 3)
    )
