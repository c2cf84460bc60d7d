"""Whether a picture stands at the same rank in every language: mean rank variance."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import check
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import all_texts, check_texts
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import pad_ids, rank
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, skipped_figures


@EVALUATORS.register("mrv")
@dataclasses.dataclass(frozen=True)
class MeanRankVariance(SourceOptions):
    """Mean rank variance over languages (CCRK, Nie et al. 2024, arXiv 2406.18254, section 3.3).

        MRV = mean_i 1/K sum_k (rank_ik - mean_k rank_ik)²

    rank_ik is the rank of instance i's text in language k among all texts of that language, for its
    picture (`i2t`), or that of its picture for the text (`t2i`). The paper takes the variance, the
    released script the standard deviation. Only instances with a text in each language count; the
    texts of equal spelling are right answers for each other, and ties count by their expected rank.

    Figures: `i2t_mrv`, `t2i_mrv` (variance), `i2t_mrv_std`, `t2i_mrv_std`; `i2t_r@1/COLUMN`,
      `t2i_r@1/COLUMN` of each language, `mean_r@1` of all; `instances`, `skipped/CAUSE`.

    Attributes:
      texts: columns of texts, one a language, two or more; the first text of each counts.
    """

    texts: tuple[str, ...] = ("name/en", "name/de")

    def __post_init__(self):
        super().__post_init__()
        check(
            len(set(self.texts)) == len(self.texts) >= 2,
            "texts",
            f"{list(self.texts)!r} must be two or more different columns",
        )

    @property
    def figures(self) -> tuple[str, ...]:
        directions = ("i2t", "t2i")
        spread = [f"{d}_{name}" for d in directions for name in ("mrv", "mrv_std")]
        recall = [f"{d}_r@1/{column}" for d in directions for column in self.texts]
        return (*spread, *recall, "mean_r@1", "instances", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.texts, "texts")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has a picture and a text in each language."""
        source, encoded = self.encode(encoders)
        by_language = [all_texts(source, (column,)) for column in self.texts]
        have = np.array([all(of[i] for of in by_language) for i in encoded.index])
        if not have.any():
            raise DataError(f"{source.name} has no image with a text in {', '.join(self.texts)}")
        images = encoded.rows[have]
        index = encoded.index[have]
        found = {}
        ranks: dict[str, list[np.ndarray]] = {"i2t": [], "t2i": []}
        for column, of in zip(self.texts, by_language):
            texts = [of[i][0] for i in index]
            number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
            ids = pad_ids([[number[text]] for text in texts])
            rows = encoders.texts(texts)
            for direction, sides in (("i2t", (images, rows)), ("t2i", (rows, images))):
                places = rank(*sides, ids, ids, encoders.mesh)
                found[f"{direction}_r@1/{column}"] = float(places.recall(1).mean())
                ranks[direction].append(places.rank())
        found["mean_r@1"] = float(np.mean(list(found.values())))
        for direction, places in ranks.items():
            variance, deviation = mean_rank_variance(np.stack(places, 1))
            found |= {f"{direction}_mrv": variance, f"{direction}_mrv_std": deviation}
        found["instances"] = float(len(index))
        missing = {"no text in a language": int((~have).sum())}
        return EvalResult(found | skipped_figures(encoded.skipped, missing), [])


def mean_rank_variance(ranks: np.ndarray) -> tuple[float, float]:
    """Means over instances of the variance and of the standard deviation of ranks [N, K] over the
    K languages, both divided by K."""
    return float(ranks.var(1).mean()), float(ranks.std(1).mean())
