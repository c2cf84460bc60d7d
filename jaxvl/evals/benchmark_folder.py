"""Standard benchmarks of a local folder, in the training loop.

`python -m jaxvl.benchmark` measures a checkpoint on them.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Annotated

from absl import logging

from jaxvl.config import ConfigError, PathText, Range, check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import SourceConfig
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.benchmarks.base import Found
from jaxvl.evals.benchmarks.opening import agreed_open
from jaxvl.evals.benchmarks.scoring import score
from jaxvl.evals.benchmarks.search import survey
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import class_vectors
from jaxvl.evals.source_options import check_tokenizer


@EVALUATORS.register("benchmarks")
@dataclasses.dataclass(frozen=True)
class BenchmarkFolder:
    """Each set's own main figure, of the benchmarks that lie below a folder (`evals/benchmarks`).

    Figures: `SET/FIGURE`, as `imagenet1k/acc1`; `images`, of all sets together; `not_measured`, how
      many sets could not be, if any.

    Attributes:
      root: the folder.
      only: names of sets, `*` standing for anything; empty: all.
      languages: of the texts.
      every: steps between two evaluations; 0: only after the last step.
    """

    root: PathText
    only: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    every: Annotated[int, Range(0, 2**31 - 1)] = 0

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Of none by config: the sets are opened one after the other."""
        return ()

    @property
    def figures(self) -> tuple[str, ...]:
        """See `contract.Evaluator`."""
        return ("*",)

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        encoders.check_embeds()
        check_tokenizer(encoders)
        check(
            bool(self._chosen()),
            "root",
            f"{self.root!r} has none of the benchmarks {list(self.only) or ''}",
        )

    def run(self, encoders: Encoders) -> EvalResult:
        """A set that cannot be measured is logged, and the others go on. Raises DataError where
        none can be."""
        metrics: dict[str, float] = {}
        failed: dict[str, str] = {}
        images = 0
        for found in self._chosen():
            opened, why = agreed_open(found)
            if opened is None:
                failed[found.key] = why
                continue
            try:
                got = score(opened, encoders, functools.partial(class_vectors, encoders.texts))
            except DataError as error:
                failed[found.key] = str(error)
                continue
            value = got.metrics[opened.main_metric]
            if value is not None:
                metrics[f"{found.key}/{opened.main_metric}"] = value
            images += got.images
        if not images:
            raise DataError("; ".join(f"{key}: {why}" for key, why in failed.items()))
        for key, why in failed.items():
            logging.warning("benchmark %s: %s", key, why)
        metrics |= {"not_measured": float(len(failed))} if failed else {}
        return EvalResult(metrics | {"images": float(images)}, [])

    def _chosen(self) -> list[Found]:
        try:
            return survey(pathlib.Path(self.root)).chosen(self.only or None, self.languages)
        except DataError as error:
            raise ConfigError("root", str(error)) from None
