"""What evaluators of a source of records share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from jaxvl.config import ConfigError, Range, Steps, check
from jaxvl.data.records import DataError, causes
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source, SourceConfig
from jaxvl.data.sources.opened import opened
from jaxvl.evals.columns import PICTURES, check_column
from jaxvl.evals.encoders import EncodedImages, Encoders


def open_named(config: SourceConfig, field: str = "source") -> Source:
    """The source of a config. Raises ConfigError at `field` where it cannot be opened as it says,
    or has no record."""
    try:
        source = opened(config)
    except ConfigError as error:
        raise error.under(field) from None
    check(len(source) > 0, field, f"{source.name} has no records")
    return source


def check_tokenizer(encoders: Encoders) -> None:
    """Raises ConfigError where no text can be read: the tokenizer was left behind, a package is
    missing, there is no room for a word."""
    try:
        encoders.tokenizer.encode(["a"], encoders.text_length)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("name", f"reads texts, which the tokenizer cannot: {error}") from None


def check_template(template: str, what: str) -> None:
    """Raises ConfigError at `template` where it does not say once where `what` goes."""
    check(
        template.count("{}") == 1,
        "template",
        f"{template!r} must hold '{{}}' once, where the {what} goes",
    )


def sample(n: int, size: int) -> np.ndarray:
    """At most `size` of `n` positions: random, but the same ones at every evaluation, so that runs
    can be compared."""
    return np.sort(np.random.default_rng(0).permutation(n)[:size])


def skipped_figures(*counts: Mapping[str, int]) -> dict[str, float]:
    """Counts by cause as figures `skipped/CAUSE`; causes that did not occur are left out."""
    return {f"skipped/{cause}": float(n) for part in counts for cause, n in part.items() if n}


def too_many(
    skipped: Mapping[str, int], records: int, budget: float = 0.01, minimum: int = 10
) -> bool:
    """Whether more of a source's records are bad than a budget allows; see `SourceOptions`."""
    bad = sum(skipped.values())
    return bad >= minimum and bad > budget * records


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options that every evaluator of a source has.

    Attributes:
      source: the records by name of their format, with its options.
      every: steps between two evaluations in the training loop; 0: only after the last step.
      image: the column of pictures.
      gallery: queries shown with what was retrieved, in each direction; 0: none.
      error_budget: share of bad records that ends the evaluator, once `error_minimum` have been
        met. The whole source is read, so the share is exact; training, which has seen a sample,
        asks a statistical test (`data/budget.py`).
      error_minimum: see `error_budget`.
    """

    source: Annotated[Any, SOURCES]
    every: Annotated[int, Range(0, 2**31 - 1)] = 0
    image: str = "image"
    gallery: Annotated[int, Range(0, 10_000)] = 12
    error_budget: float = 0.01
    error_minimum: Steps = 10

    def __post_init__(self):
        check(
            self.every >= 0,
            "every",
            f"{self.every!r} must be >= 1 step, or 0 for only after the last step",
        )
        check(self.gallery >= 0, "gallery", f"{self.gallery!r} must be >= 0 queries")
        check(
            0 <= self.error_budget <= 1,
            "error_budget",
            f"{self.error_budget!r} is a share; must be in [0, 1]",
        )
        check(self.error_minimum >= 1, "error_minimum", f"{self.error_minimum!r} must be >= 1")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Configs of all sources that the evaluator reads."""
        return (self.source,)

    def open(self) -> Source:
        """The evaluated records. Raises ConfigError at `source`."""
        return open_named(self.source)

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        self.open()

    def check_images(self, source: Source) -> None:
        """Raises ConfigError at `image` where a source has no such column of pictures."""
        check_column(source, self.image, PICTURES, "image")

    def within_budget(self, skipped: Mapping[str, int], source: Source) -> None:
        """Raises DataError where more records of a source are bad than the error budget allows;
        `skipped`: cause -> bad records."""
        if not too_many(skipped, len(source), self.error_budget, self.error_minimum):
            return
        bad = f"{sum(skipped.values())} of {len(source)} records are bad ({causes(skipped)})"
        raise DataError(
            f"{source.name}: {bad}, more than error_budget {self.error_budget:g} allows"
        )

    def encode(self, encoders: Encoders, output: str | None = None) -> tuple[Source, EncodedImages]:
        """The evaluated source, and its pictures' rows (encoded once for all evaluators of the
        source); `output`: of the model, instead of the embedding.

        Raises DataError where too many of its pictures cannot be encoded.
        """
        source = self.open()
        encoded = encoders.images(source, self.image, self.source, output)
        self.within_budget(encoded.skipped, source)
        if not len(encoded.index):
            counts = f"records: {len(source)}, skipped: {encoded.skipped or 0}"
            raise DataError(f"{source.name} has no image that can be encoded ({counts})")
        return source, encoded
