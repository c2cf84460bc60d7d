"""Texts with a word, or two words in a row, that are seldom anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from jaxvl.data.preparing.losses import Context, JoinRule, Loss, PCollection
from jaxvl.data.preparing.rows import Place, Row
from jaxvl.data.preparing.words import grams

Occurrence = tuple[int, Place]


def _counted(row: Row) -> Iterator[tuple[str, int]]:
    for _, text in row.texts:
        for gram in grams(text):
            yield gram, 1


def _occurring(row: Row) -> Iterator[tuple[str, tuple[int, tuple[Occurrence, ...] | None]]]:
    for place, text in row.texts:
        for gram in grams(text):
            yield gram, (1, ((row.position, place),))


def lowest_kept(histogram: Iterable[tuple[int, int]], most: int) -> int:
    """The lowest value of the at most `most` highest ones; of equal values, all or none are kept.

    Args:
      histogram: (value, how many have it).
    """
    kept = 0
    lowest = 0
    for value, number in sorted(histogram, reverse=True):
        kept += number
        if kept > most:
            return value + 1
        lowest = value
    return lowest


def _gather(values: Iterable[tuple[int, tuple[Occurrence, ...] | None]], fewest: int) -> tuple[int, tuple[Occurrence, ...] | None]:
    """Sums counts and joins occurrences; a gram that occurs often enough keeps no occurrences, so that none grows without end."""
    total = 0
    kept: list[Occurrence] | None = []
    for count, occurrences in values:
        total += count
        if total >= fewest or occurrences is None:
            kept = None
        if kept is not None and occurrences is not None:
            kept.extend(occurrences)
    return total, None if kept is None else tuple(kept)


def _rare(gathered: tuple[str, tuple[int, tuple[Occurrence, ...] | None]]) -> Iterator[Loss]:
    gram, (count, occurrences) = gathered
    for position, place in sorted(set(occurrences or ())):
        yield Loss(position, (place,), f"{gram!r} occurs {count} times")


def _fewest(gathered: tuple[None, Iterable[tuple[int, int]]], most: int) -> int:
    return lowest_kept(gathered[1], most)


@dataclasses.dataclass(frozen=True)
class RareWords(JoinRule):
    """The vocabulary is that of all texts that could be read, before any rule, as in the paper."""

    vocabulary: int

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        name = self.name
        counts = context.raw | f"{name}: grams" >> beam.FlatMap(_counted) | f"{name}: counts" >> beam.CombinePerKey(sum)
        histogram = counts | f"{name}: alike" >> beam.Map(_one_of_count) | f"{name}: histogram" >> beam.CombinePerKey(sum)
        together = histogram | f"{name}: no key" >> beam.Map(_without_key) | f"{name}: together" >> beam.GroupByKey()
        fewest = together | f"{name}: cut-off" >> beam.Map(_fewest, self.vocabulary)
        occurring = context.raw | f"{name}: places" >> beam.FlatMap(_occurring)
        gathered = occurring | f"{name}: gather" >> beam.CombinePerKey(_gather, beam.pvalue.AsSingleton(fewest, default_value=1))
        return gathered | f"{name}: rare" >> beam.FlatMap(_rare)


def _one_of_count(counted: tuple[str, int]) -> tuple[int, int]:
    return counted[1], 1


def _without_key(value: Any) -> tuple[None, Any]:
    return None, value
