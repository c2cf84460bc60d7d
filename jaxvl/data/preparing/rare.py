"""Texts with a word, or two words in a row, that are seldom anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from jaxvl.data.preparing.gathering import PCollection, gathered
from jaxvl.data.preparing.losses import Context, JoinRule, Loss
from jaxvl.data.preparing.rows import Place, Row
from jaxvl.data.preparing.words import grams

Occurrence = tuple[int, Place]
# Of one gram: how often it occurs, how often it has to, and where; None: often enough, wherever.
Found = tuple[int, int, tuple[Occurrence, ...] | None]


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


def _counted(row: Row) -> Iterator[tuple[str, int]]:
    for _, text in row.texts:
        for gram in grams(text):
            yield gram, 1


def _one_of_count(counted: tuple[str, int]) -> tuple[int, int]:
    return counted[1], 1


def _occurring(row: Row, fewest: int) -> Iterator[tuple[str, Found]]:
    for place, text in row.texts:
        for gram in grams(text):
            yield gram, (1, fewest, ((row.position, place),))


def _join(values: Iterable[Found]) -> Found:
    """Sums counts and joins occurrences. A gram that occurs often enough keeps none, so that a
    frequent one takes no memory.

    The threshold comes with the values, not as a side input: a combiner that has one keeps all keys
    of a bundle in memory, and not every runner has such combiners.
    """
    total = 0
    kept: list[Occurrence] | None = []
    needed = 0
    for count, fewest, occurrences in values:
        total += count
        needed = fewest
        if total >= fewest or occurrences is None:
            kept = None
        if kept is not None and occurrences is not None:
            kept.extend(occurrences)
    return total, needed, None if kept is None else tuple(kept)


def _rare(joined: tuple[str, Found]) -> Iterator[Loss]:
    gram, (count, _, occurrences) = joined
    for position, place in sorted(set(occurrences or ())):
        yield Loss(position, (place,), f"{gram!r} occurs {count} times")


@dataclasses.dataclass(frozen=True)
class RareWords(JoinRule):
    """The vocabulary is that of all texts that could be read, before any rule, as in the paper."""

    vocabulary: int

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        name = self.name
        counts = (
            context.raw
            | f"{name}: grams" >> beam.FlatMap(_counted)
            | f"{name}: counts" >> beam.CombinePerKey(sum)
        )
        histogram = (
            counts
            | f"{name}: alike" >> beam.Map(_one_of_count)
            | f"{name}: histogram" >> beam.CombinePerKey(sum)
        )
        fewest = gathered(histogram, name) | f"{name}: cut-off" >> beam.Map(
            lowest_kept, self.vocabulary
        )
        threshold = beam.pvalue.AsSingleton(fewest, default_value=1)
        occurring = context.raw | f"{name}: places" >> beam.FlatMap(_occurring, threshold)
        return (
            occurring
            | f"{name}: joined" >> beam.CombinePerKey(_join)
            | f"{name}: rare" >> beam.FlatMap(_rare)
        )
