"""Evaluation of several runs' embeddings after each other, such as those of MCL's stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxvl.config import ConfigError, PathText, check
from jaxvl.data.sources.base import SourceConfig
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.contract import Evaluator
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders


@EVALUATORS.register("ensemble")
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Another evaluator, on the normalised embeddings of several runs after each other.

        z = [z_1; …; z_S] / sqrt(S),   z_s of length 1

    So the cosine of two rows is the mean of their cosines in the S runs. It is how MCL joins its
    stages (Zhang et al. 2024, arXiv 2402.11816, cross-stage representation integration; the
    release concatenates without the factor, which changes no order).

        evals = dict(both=dict(name="ensemble", runs=("{stages.one}",),
                               evaluator=dict(name="linear_probe", …)))

    Figures: those of `evaluator`.

    Attributes:
      runs: workdirs, whose newest weights stand before this run's own. They must have the same
        tokenizer and read pictures as this run does.
      evaluator: by name, with its options; one that needs no more than embeddings.
    """

    runs: tuple[PathText, ...]
    evaluator: Annotated[Any, EVALUATORS]

    def __post_init__(self):
        check(bool(self.runs), "runs", "must name at least one other run")

    @property
    def every(self) -> int:
        return self.evaluator.every

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        return self._evaluator.sources

    @property
    def figures(self) -> tuple[str, ...]:
        return self._evaluator.figures

    @property
    def _evaluator(self) -> Evaluator:
        return self.evaluator

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`; the other runs' weights are read."""
        whole = self._joined(encoders)
        try:
            self._evaluator.check(whole)
        except ConfigError as error:
            raise error.under("evaluator") from None

    def run(self, encoders: Encoders) -> EvalResult:
        """See `contract.Evaluator.run`."""
        return self._evaluator.run(self._joined(encoders))

    def _joined(self, encoders: Encoders) -> Encoders:
        open_run = encoders.open_run
        check(open_run is not None, "runs", f"{list(self.runs)!r}: no other run can be opened here")
        return joined([*map(open_run, self.runs), encoders])


def joined(several: Sequence[Encoders]) -> Encoders:
    """Encoders of the embeddings of all after each other; all else is the last one's.

    Raises ConfigError at `runs[I]` where one reads pictures or texts otherwise than the last.
    """
    last = several[-1]
    for i, other in enumerate(several[:-1]):
        same = other.preprocess == last.preprocess
        problem = f"reads pictures as {other.preprocess}; must be as {last.preprocess}"
        check(same, f"runs[{i}]", problem)
        same = _identity(other) == _identity(last)
        check(same, f"runs[{i}]", "has another tokenizer or text length; must be this run's")
    images = [encoders.functions.image for encoders in several]
    texts = [encoders.functions.text for encoders in several]

    def after_each_other(functions: Sequence, weights: Sequence, x: jax.Array) -> jax.Array:
        rows = [f(w, x).astype(jnp.float32) for f, w in zip(functions, weights, strict=True)]
        return jnp.concatenate(rows, -1) / jnp.sqrt(jnp.float32(len(rows)))

    return Encoders(
        Functions(
            lambda weights, pixels: after_each_other(images, weights, pixels),
            lambda weights, tokens: after_each_other(texts, weights, tokens),
        ),
        tuple(encoders.weights for encoders in several),
        last.tokenizer,
        last.preprocess,
        last.text_length,
        last.mesh,
        batch=last.batch,
    )


def _identity(encoders: Encoders) -> tuple[str, int]:
    """What tells how texts are read."""
    return encoders.tokenizer.to_json(), encoders.text_length
