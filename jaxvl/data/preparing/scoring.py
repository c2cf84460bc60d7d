"""Scores of pairs by a model, and the rules that keep the best.

A scorer is chosen by name, `rules.score = dict(name="checkpoint", workdir="runs/align")`; its
config is registered in `SCORERS` and has `open() -> Scorer`. Records are scored in ranges of the
source, so that a score does not depend on the workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from jaxvl import paths
from jaxvl.data.preparing.gathering import PCollection, gathered
from jaxvl.data.preparing.losses import Context, Loss, Removal, Rule, split
from jaxvl.data.preparing.rare import lowest_kept
from jaxvl.data.preparing.rows import Row, opened
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Source

STEPS = 10_000  # of scores between 0 and 1 that the share of the best tells apart
OF_NAN = -(2**62)  # step of a score that is none
AT_ONCE = 1000  # records whose pictures are in memory
RangeRows = tuple[int, Iterable[Row]]  # its number, rows in any order
Scored = tuple[
    Row, tuple[float, ...]
]  # a score for each text; nan where the picture cannot be encoded


class Scorer(Protocol):
    def scores(
        self, pictures: Sequence[bytes], texts: Sequence[Sequence[str]]
    ) -> Sequence[np.ndarray]:
        """float [K] for each picture: how well each of its K texts fits it; nan where the picture
        cannot be encoded."""


@functools.lru_cache(maxsize=2)
def _scorer(config: str) -> Scorer:
    resolved, _ = opened(config)
    return resolved.rules.score.open()


def _range_of(row: Row, records: int) -> tuple[int, Row]:
    return row.position // records, row


def _in_ranges(name: str, rows: PCollection, context: Context) -> PCollection:
    """PCollection of RangeRows: the rows that are left of each range of the source."""
    import apache_beam as beam

    records = json.loads(context.config)["range_records"]
    return (
        rows
        | f"{name}: ranges" >> beam.Map(_range_of, records)
        | f"{name}: group" >> beam.GroupByKey()
    )


def scored(group: RangeRows, config: str, work: str) -> list[Scored]:
    """Rows of one range with their scores, which are kept in `work`: for a second reading, and for
    a run that is started again."""
    rows = sorted(group[1], key=lambda row: row.position)
    content = json.dumps([[row.position, [text for _, text in row.texts]] for row in rows])
    file = (
        paths.as_path(work)
        / f"scores-{group[0]:012d}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    )
    try:
        values = json.loads(paths.read_text(file))
    except FileNotFoundError:
        values = _scores(config, rows)
        paths.write_text(file, json.dumps(values))
    return [(row, tuple(scores)) for row, scores in zip(rows, values)]


def _scores(config: str, rows: Sequence[Row]) -> list[list[float]]:
    resolved, source = opened(config)
    out: list[list[float]] = []
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        pictures = [_picture(source, row.position, resolved.image) for row in some]
        texts = [[text for _, text in row.texts] for row in some]
        out += [
            [float(score) for score in scores] for scores in _scorer(config).scores(pictures, texts)
        ]
    return out


def _picture(source: Source, position: int, column: str) -> bytes:
    try:
        return source.read(position, [column])[column]
    except (BadRecord, KeyError) as error:
        raise DataError(
            f"{source.name}: record {position} could be read before and cannot now ({error})"
        ) from None


@dataclasses.dataclass(frozen=True)
class MinScore(Rule):
    least: float

    def judged(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        ranges = _in_ranges(self.name, rows, context)
        return ranges | f"{self.name}: below" >> beam.FlatMap(
            _cut_below, self.least, context.config, context.work, self.name
        )


def _cut_below(
    group: RangeRows, least: float, config: str, work: str, rule: str
) -> Iterator[Row | Removal]:
    for row, scores in scored(group, config, work):
        losses = [
            Loss(row.position, (place,), f"scores {score:.4f}, less than {least:.4f}")
            for (place, _), score in zip(row.texts, scores)
            if not score >= least  # nan, too
        ]
        yield from split(row, losses, rule)


@dataclasses.dataclass(frozen=True)
class TopShare(Rule):
    """Scores are told apart to four digits. Of pairs that are equal at the border, none is kept."""

    share: float

    def judged(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        name = self.name
        ranges = _in_ranges(name, rows, context)
        steps = ranges | f"{name}: scores" >> beam.FlatMap(_steps, context.config, context.work)
        histogram = steps | f"{name}: histogram" >> beam.CombinePerKey(sum)
        least = gathered(histogram, name) | f"{name}: cut-off" >> beam.Map(least_step, self.share)
        threshold = beam.pvalue.AsSingleton(least, default_value=0)
        return ranges | f"{name}: below" >> beam.FlatMap(
            _cut_below_step, threshold, context.config, context.work, name
        )


def step_of(score: float) -> int:
    return OF_NAN if math.isnan(score) else round(score * STEPS)


def _steps(group: RangeRows, config: str, work: str) -> Iterator[tuple[int, int]]:
    for _, scores in scored(group, config, work):
        for score in scores:
            yield step_of(score), 1


def least_step(histogram: Iterable[tuple[int, int]], share: float) -> int:
    """The lowest step that the best `share` of all pairs have; never that of nan."""
    counts = list(histogram)
    pairs = sum(number for _, number in counts)
    return max(lowest_kept(counts, int(share * pairs)), OF_NAN + 1)


def _cut_below_step(
    group: RangeRows, least: int, config: str, work: str, rule: str
) -> Iterator[Row | Removal]:
    for row, scores in scored(group, config, work):
        losses = [
            Loss(row.position, (place,), f"scores {score:.4f}, less than {least / STEPS:.4f}")
            for (place, _), score in zip(row.texts, scores)
            if step_of(score) < least
        ]
        yield from split(row, losses, rule)
