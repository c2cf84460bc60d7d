"""How far apart the embeddings of pictures and of texts lie, and how much of the space they use."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import Columns, all_texts, check_texts, listed
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.linear_probe import fit, shard
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, sample, skipped_figures

SHOWN = (1, 5, 10)  # of the spectrum
ROWS = 4096  # pairs whose distances to each other are looked at, at most
PENALTY = 1e-4  # of the classifier's weights


@EVALUATORS.register("gap")
@dataclasses.dataclass(frozen=True)
class Gap(SourceOptions):
    """The contrastive gap of a source's pairs (Fahim et al. 2024, arXiv 2405.18570, section 3;
    centroids as in Liang et al. 2022, arXiv 2203.02053).

    Figures: `centroid_distance`, |mean of pictures - mean of texts|; `separability`, the share of
      rows whose modality a linear classifier tells, on pairs that it was not fitted to (0.5: it
      cannot); `alignment`, the mean squared distance of a pair; `uniformity`, the log of the mean
      of exp(-2 |x - y|²) over two rows of one modality, mean of both, and `cross_uniformity` over a
      picture and the text of another; of the singular values of all rows less their mean,
      `effective_rank`, the exponential of the entropy of their shares of the variance (Roy &
      Vetterli 2007), and `variance_K`, the share of the first K = 1, 5, 10; `pairs`,
      `skipped/CAUSE`.

    Attributes:
      text: a column of texts, or several; the first text of a record is its caption.
      iterations: most steps of the classifier's fit.
    """

    text: Columns = "text"
    iterations: int = 200

    @property
    def figures(self) -> tuple[str, ...]:
        spectrum = [f"variance_{k}" for k in SHOWN]
        return (
            "centroid_distance",
            "separability",
            "alignment",
            "uniformity",
            "cross_uniformity",
            "effective_rank",
            *spectrum,
            "pairs",
            "skipped/*",
        )

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where fewer than four records have both an image and a caption."""
        source, encoded = self.encode(encoders)
        texts_of = all_texts(source, listed(self.text))
        have = np.array([bool(texts_of[i]) for i in encoded.index])
        if have.sum() < 4:
            raise DataError(f"{source.name} has {have.sum()} images with a caption; needs 4")
        images = encoded.rows[have].astype(np.float64)
        captions = [texts_of[i][0] for i in encoded.index[have]]
        texts = encoders.texts(captions).astype(np.float64)
        some = sample(len(images), ROWS)
        found = {
            "centroid_distance": centroid_distance(images, texts),
            "separability": self._separability(images, texts, encoders),
            **distances(images[some], texts[some]),
            **spectrum(np.concatenate([images, texts])),
            "pairs": float(len(images)),
        }
        found |= skipped_figures(encoded.skipped, {"no caption": int((~have).sum())})
        return EvalResult(found, [])

    def _separability(self, images: np.ndarray, texts: np.ndarray, encoders: Encoders) -> float:
        """Accuracy on every second pair of a classifier fitted to the others."""
        fitted = np.concatenate([images[::2], texts[::2]]).astype(np.float32)
        labels = np.repeat([0, 1], len(fitted) // 2)
        learn = functools.partial(fit, iterations=self.iterations, mesh=encoders.mesh, classes=2)
        data = shard(fitted, labels, encoders.mesh)
        classifier = learn(data, np.ones(len(fitted), bool), PENALTY)
        told = []
        for rows, sign in ((images[1::2], 1), (texts[1::2], -1)):
            logits = classifier.logits(rows.astype(np.float32))
            told.append(0.5 + 0.5 * np.sign(sign * (logits[:, 0] - logits[:, 1])))
        return float(np.concatenate(told).mean())


def centroid_distance(images: np.ndarray, texts: np.ndarray) -> float:
    """Distance of the means of rows [N, D] and [M, D]."""
    return float(np.linalg.norm(images.mean(0) - texts.mean(0)))


def distances(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """`alignment`, `uniformity` and `cross_uniformity` of unit rows float64 [N, D], N >= 2."""
    within = (_potential(images, images) + _potential(texts, texts)) / 2
    return {
        "alignment": float(np.square(images - texts).sum(1).mean()),
        "uniformity": within,
        "cross_uniformity": _potential(images, texts),
    }


def _potential(x: np.ndarray, y: np.ndarray) -> float:
    """log mean_{i != j} exp(-2 |x_i - y_j|²)."""
    near = np.exp(-4 * np.maximum(1 - x @ y.T, 0.0))
    np.fill_diagonal(near, 0.0)
    return float(np.log(near.sum() / (len(x) * (len(x) - 1))))


def spectrum(rows: np.ndarray) -> dict[str, float]:
    """`effective_rank` and `variance_K` of float64 [N, D]; of equal rows 1 and 1."""
    centred = rows - rows.mean(0)
    variance = np.linalg.eigvalsh(centred.T @ centred)[::-1].clip(0)
    total = variance.sum()
    if total < 1e-12 * max(np.square(rows).sum(), 1.0):
        return {"effective_rank": 1.0, **{f"variance_{k}": 1.0 for k in SHOWN}}
    share = variance / total
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)))
    return {
        "effective_rank": float(np.exp(entropy)),
        **{f"variance_{k}": float(share[:k].sum()) for k in SHOWN},
    }
