"""Retrieval from a pool of pictures and texts, of which a query wants pictures."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import Count, check
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import Columns, all_texts, check_texts, groups_of, listed
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import rank, top_k
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, skipped_figures

KS = (1, 5, 10)


@EVALUATORS.register("mixed_pool")
@dataclasses.dataclass(frozen=True)
class MixedPool(SourceOptions):
    """Texts ask for pictures; the candidates are all pictures and all documents of a source, as in
    universal retrieval (MM-Embed, Lin et al. 2024, arXiv 2411.02571: the modality bias).

    Of each record the first text of `query` asks, its picture is right, and the first text of
    `document` is a candidate of the wrong modality. Records that lack one are left out.

    Figures: `wrong_modality@K`, the share of documents among the first K candidates, K = `depth`,
    and `wrong_modality_chance`; `r@1`, `r@5`, `r@10` of a right picture in the whole pool;
    `queries`, `candidates`, `skipped/CAUSE`.

    Attributes:
      query: column of texts that ask, or several.
      document: column of texts that are candidates, or several; others than those of `query`, which
        would find themselves.
      group: column whose equal values make pictures right; None: the record's own.
      depth: K, 10.
    """

    query: Columns = "text"
    document: Columns = "document"
    group: str | None = None
    depth: Count = 10

    def __post_init__(self):
        super().__post_init__()
        both = set(listed(self.query)) & set(listed(self.document))
        check(not both, "document", f"{sorted(both)} also ask; a query would find itself")

    @property
    def figures(self) -> tuple[str, ...]:
        wrong = f"wrong_modality@{self.depth}", "wrong_modality_chance"
        return (*wrong, *(f"r@{k}" for k in KS), "queries", "candidates", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.query, "query")
        check_texts(source, self.document, "document")
        if self.group is not None:
            groups_of(source, self.group)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has a picture and both texts."""
        source, encoded = self.encode(encoders)
        asking = all_texts(source, listed(self.query))
        documents = all_texts(source, listed(self.document))
        have = np.array([bool(asking[i] and documents[i]) for i in encoded.index])
        if not have.any():
            columns = ", ".join((*listed(self.query), *listed(self.document)))
            raise DataError(f"{source.name} has no record with a picture and texts ({columns})")
        index = encoded.index[have]
        n = len(index)
        queries = encoders.texts([asking[i][0] for i in index])
        pool = np.concatenate(
            [encoded.rows[have], encoders.texts([documents[i][0] for i in index])]
        )
        right = np.arange(n) if self.group is None else groups_of(source, self.group)[index]
        ids = np.concatenate([right, np.full(n, -1)])  # documents are never right
        ranks = rank(queries, pool, right, ids, encoders.mesh)
        _, best = top_k(queries, pool, self.depth, encoders.mesh)
        metrics = {
            f"wrong_modality@{self.depth}": float((best >= n).mean()),
            "wrong_modality_chance": 0.5,
            **{f"r@{k}": float(ranks.recall(k).mean()) for k in KS},
            "queries": float(n),
            "candidates": float(len(pool)),
        }
        skipped = skipped_figures(encoded.skipped, {"no text": int((~have).sum())})
        return EvalResult(metrics | skipped, [])
