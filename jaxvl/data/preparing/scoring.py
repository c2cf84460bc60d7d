"""Scores of pairs by a model, and the rules that keep the best.

A scorer is chosen by name, `rules.score = dict(name="checkpoint", workdir="runs/align")`; its config is registered in `SCORERS`
and has `open() -> Scorer`. Records are scored in ranges of the source, so that a score does not depend on the workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxvl import paths
from jaxvl.data.preparing.losses import Context, JoinRule, Loss, PCollection
from jaxvl.data.preparing.rare import lowest_kept
from jaxvl.data.preparing.rows import Place, Row, opened
from jaxvl.data.records import BadRecord, DataError

STEPS = 10_000  # of scores between 0 and 1 that the share of the best tells apart
Scored = tuple[int, Place, float]  # position, place of the text, score; nan where the picture cannot be encoded


class Scorer(Protocol):
    def scores(self, pictures: Sequence[bytes], texts: Sequence[Sequence[str]]) -> Sequence[np.ndarray]:
        """float [K] for each picture: how well each of its K texts fits it; nan where the picture cannot be encoded."""


@functools.lru_cache(maxsize=2)
def _scorer(config: str) -> Scorer:
    resolved, _ = opened(config)
    return resolved.rules.score.open()


def _range_of(row: Row, records: int) -> tuple[int, Row]:
    return row.position // records, row


def score_range(group: tuple[int, Iterable[Row]], config: str, work: str) -> Iterator[Scored]:
    """Scores of the rows of one range of the source; they are kept in `work`, for a run that is started again."""
    rows = sorted(group[1], key=lambda row: row.position)
    said = json.dumps([[row.position, [text for _, text in row.texts]] for row in rows])
    file = paths.as_path(work) / f"scores-{group[0]:012d}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    try:
        values = json.loads(paths.read_text(file))
    except FileNotFoundError:
        values = _scores(config, rows)
        paths.write_text(file, json.dumps(values))
    for row, scores in zip(rows, values):
        for (place, _), score in zip(row.texts, scores):
            yield row.position, place, score


def _scores(config: str, rows: Sequence[Row]) -> list[list[float]]:
    resolved, source = opened(config)
    pictures = [_picture(source, row.position, resolved.image) for row in rows]
    texts = [[text for _, text in row.texts] for row in rows]
    found = _scorer(config).scores(pictures, texts)
    return [[float(score) for score in scores] for scores in found]


def _picture(source: Any, position: int, column: str) -> bytes:
    try:
        return source.read(position, [column])[column]
    except (BadRecord, KeyError) as error:
        raise DataError(f"{source.name}: record {position} could be read before and cannot now ({error})") from None


def _below(scored: Scored, least: float) -> Iterator[Loss]:
    position, place, score = scored
    if not score >= least:  # nan, too
        yield Loss(position, (place,), f"scores {score:.4f}, less than {least:.4f}")


def _step(scored: Scored) -> tuple[int, int]:
    score = scored[2]
    return (-(2**62) if math.isnan(score) else round(score * STEPS)), 1


def _least(together: tuple[None, Iterable[tuple[int, int]]], share: float) -> float:
    histogram = list(together[1])
    pairs = sum(number for _, number in histogram)
    return (lowest_kept(histogram, int(share * pairs)) - 0.5) / STEPS


def _without_key(value: Any) -> tuple[None, Any]:
    return None, value


def _scored(name: str, rows: PCollection, context: Context) -> PCollection:
    import apache_beam as beam

    records = json.loads(context.config)["range_records"]
    grouped = rows | f"{name}: ranges" >> beam.Map(_range_of, records) | f"{name}: group" >> beam.GroupByKey()
    return grouped | f"{name}: scores" >> beam.FlatMap(score_range, context.config, context.work)


@dataclasses.dataclass(frozen=True)
class MinScore(JoinRule):
    least: float

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        return _scored(self.name, rows, context) | f"{self.name}: below" >> beam.FlatMap(_below, self.least)


@dataclasses.dataclass(frozen=True)
class TopShare(JoinRule):
    """Pairs of equal score, to four digits, at the border all go."""

    share: float

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        name = self.name
        scored = _scored(name, rows, context)
        histogram = scored | f"{name}: steps" >> beam.Map(_step) | f"{name}: histogram" >> beam.CombinePerKey(sum)
        together = histogram | f"{name}: no key" >> beam.Map(_without_key) | f"{name}: together" >> beam.GroupByKey()
        least = together | f"{name}: cut-off" >> beam.Map(_least, self.share)
        return scored | f"{name}: below" >> beam.FlatMap(_below, beam.pvalue.AsSingleton(least, default_value=0.0))
