"""Precision at 1 among candidates: each query has its own, and one of them is right."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np

from jaxvl.config import Range
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import Columns, all_texts, check_texts, listed, text_ids
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import (
    SourceOptions,
    check_template,
    check_tokenizer,
    sample,
    skipped_figures,
)


@EVALUATORS.register("candidates")
@dataclasses.dataclass(frozen=True)
class CandidatePrecision(SourceOptions):
    """Precision at 1 of queries with candidates of their own, as MMEB measures it (VLM2Vec, Jiang
    et al. 2024, arXiv 2410.05160, section 3): 1,000 queries of 1,000 candidates.

    A query's candidates are its own record's other side and those of records whose text is another,
    drawn without replacement, the same ones at every evaluation. Where there are fewer than asked
    for, all of them are candidates. Equal scores count by the probability that the right one is
    first under random order.

    Figures: `precision@1`, `precision@1_chance`, `queries`, `candidates` (mean per query),
      `skipped/CAUSE`.

    Attributes:
      text: a column of texts, or several; the first text of a record counts.
      query: which side looks for the other one.
      template: what is made of a text `{}` before it is encoded: an instruction and the query.
      most_queries, most_candidates: at most so many queries, and candidates of each; 1,000 as in
        MMEB.
    """

    text: Columns = "text"
    query: Literal["text", "image"] = "text"
    template: str = "{}"
    most_queries: Annotated[int, Range(1, 1_000_000)] = 1_000
    most_candidates: Annotated[int, Range(2, 1_000_000)] = 1_000

    def __post_init__(self):
        super().__post_init__()
        check_template(self.template, "text")

    @property
    def figures(self) -> tuple[str, ...]:
        return ("precision@1", "precision@1_chance", "queries", "candidates", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has a picture and a text, or all have one text."""
        source, encoded = self.encode(encoders)
        texts_of = all_texts(source, listed(self.text))
        have = np.array([bool(texts_of[i]) for i in encoded.index])
        texts = [texts_of[i][0] for i in encoded.index[have]]
        ids = text_ids(texts)
        if len(np.unique(ids)) < 2:
            columns = ", ".join(listed(self.text))
            raise DataError(f"{source.name} has not two images with different texts ({columns})")
        rows = encoders.texts([self.template.replace("{}", text) for text in texts])
        images = encoded.rows[have]
        sides = (rows, images) if self.query == "text" else (images, rows)
        asked = sample(len(ids), self.most_queries)
        right = np.zeros(len(asked))
        counts = np.zeros(len(asked))
        for place, i in enumerate(asked):
            chosen = drawn(ids, int(i), self.most_candidates)
            counts[place] = len(chosen)
            right[place] = first_share(sides[1][chosen] @ sides[0][i])
        found = {
            "precision@1": float(right.mean()),
            "precision@1_chance": float((1 / counts).mean()),
            "queries": float(len(asked)),
            "candidates": float(counts.mean()),
        }
        missing = {"no text": int((~have).sum())}
        return EvalResult(found | skipped_figures(encoded.skipped, missing), [])


def drawn(ids: np.ndarray, i: int, candidates: int) -> np.ndarray:
    """Places of the candidates of record i, its own first.

    Args:
      ids: int [n]; records of an equal one are right answers for each other.
      candidates: how many at most.
    """
    others = np.flatnonzero(ids != ids[i])
    rng = np.random.default_rng((0, i))
    count = min(candidates - 1, len(others))
    return np.concatenate([[i], rng.choice(others, count, replace=False)])


def first_share(scores: np.ndarray) -> float:
    """The probability that the first of scores [n] is the best under random order of equal ones."""
    if (scores[1:] > scores[0]).any():
        return 0.0
    return 1.0 / float((scores == scores[0]).sum())
