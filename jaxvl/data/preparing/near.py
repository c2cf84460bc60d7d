"""Pictures that look like a test picture.

Two perceptual hashes of 64 bits that differ in at most d bits are equal in at least one of d + 1 bands of bits. So hashes are
joined by band, and only those that meet are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from jaxvl.data.preparing.losses import Context, JoinRule, Loss, PCollection
from jaxvl.data.preparing.rows import Row, look_at, opened_test
from jaxvl.data.records import BadRecord

BITS = 64
Band = tuple[int, int]  # its number, its bits
TestLook = tuple[int, str, int]  # perceptual hash, name of the list, number of the record
IMAGE = "image"  # column of a list of test pictures


def bands(look: int, distance: int) -> Iterator[Band]:
    """The bands of a hash, `distance` + 1 of them, as equal in width as can be."""
    number = distance + 1
    edges = [BITS * i // number for i in range(number + 1)]
    for i, (low, high) in enumerate(zip(edges, edges[1:])):
        yield i, look >> low & (1 << high - low) - 1


def read_test_range(work: tuple[str, int, int], config: str) -> Iterator[TestLook]:
    """Hashes of test pictures; one that cannot be decoded cannot be looked for.

    Args:
      work: name of the list, first and last number (excluded).
    """
    name, start, stop = work
    source = opened_test(config, name)
    for i in range(start, stop):
        try:
            data = source.read(i, [IMAGE]).get(IMAGE)
            if data is not None:
                yield look_at(data, hashed=True)[2], name, i
        except BadRecord:
            continue


def _of_tests(test: TestLook, distance: int) -> Iterator[tuple[Band, tuple[Any, ...]]]:
    for band in bands(test[0], distance):
        yield band, test


def _of_rows(row: Row, distance: int) -> Iterator[tuple[Band, tuple[Any, ...]]]:
    if row.look is not None:
        for band in bands(row.look, distance):
            yield band, (row.look, row.position)


def _alike(met: tuple[Band, Iterable[tuple[Any, ...]]], distance: int) -> Iterator[Loss]:
    """Compares the rows of a band with its test pictures, which are few; the rows are read twice, not held."""
    tests = sorted(member for member in met[1] if len(member) == 3)
    if not tests:
        return
    for member in met[1]:
        if len(member) == 3:
            continue
        look, position = member
        apart, name, number = min(((look ^ test).bit_count(), name, number) for test, name, number in tests)
        if apart <= distance:
            yield Loss(position, (), f"like record {number} of {name} ({apart} bits apart)")


@dataclasses.dataclass(frozen=True)
class NearTestImages(JoinRule):
    distance: int

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        assert context.test_looks is not None
        tests = context.test_looks | f"{self.name}: bands of tests" >> beam.FlatMap(_of_tests, self.distance)
        looks = rows | f"{self.name}: bands" >> beam.FlatMap(_of_rows, self.distance)
        met = (tests, looks) | f"{self.name}: both" >> beam.Flatten() | f"{self.name}: group" >> beam.GroupByKey()
        return met | f"{self.name}: compare" >> beam.FlatMap(_alike, self.distance)
