"""Pictures that look like a test picture: perceptual hashes that differ in few bits.

Test pictures are few: every worker holds all their hashes (20 bytes each), and compares each record
with all of them. For 100,000 that takes 0.1 ms, a small part of decoding the record's picture;
nothing is moved between workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from jaxvl.data.preparing.gathering import PCollection, gathered
from jaxvl.data.preparing.losses import Context, Loss, Removal, Rule, split
from jaxvl.data.preparing.rows import Row, look_at, opened_test
from jaxvl.data.records import BadRecord

TestLook = tuple[str, int, int]  # name of the list, number of the record, perceptual hash
IMAGE = "image"  # column of a list of test pictures


@dataclasses.dataclass(frozen=True)
class TestLooks:
    """All test pictures, in the order of their lists' names and their numbers.

    Attributes:
      hashes: uint64 [n].
      lists: int32 [n]: places in `names`.
      numbers: int64 [n]: of the records in their lists.
      names: of the lists.
    """

    hashes: np.ndarray
    lists: np.ndarray
    numbers: np.ndarray
    names: tuple[str, ...]


def table_of(looks: Iterable[TestLook]) -> TestLooks:
    ordered = sorted(looks)
    names = sorted({name for name, _, _ in ordered})
    return TestLooks(
        np.array([look for _, _, look in ordered], np.uint64),
        np.array([names.index(name) for name, _, _ in ordered], np.int32),
        np.array([number for _, number, _ in ordered], np.int64),
        tuple(names),
    )


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
                yield name, i, look_at(data, hashed=True)[2]
        except BadRecord:
            continue


def nearest_test(row: Row, tests: TestLooks, distance: int) -> Loss | None:
    """The loss of a record whose hash differs from that of a test picture in at most `distance`
    bits."""
    if row.look is None or not len(tests.hashes):
        return None
    apart = np.bitwise_count(tests.hashes ^ np.uint64(row.look))
    first = int(apart.argmin())
    if apart[first] > distance:
        return None
    name = tests.names[tests.lists[first]]
    return Loss(
        row.position,
        (),
        f"like record {tests.numbers[first]} of {name} ({apart[first]} bits apart)",
    )


@dataclasses.dataclass(frozen=True)
class NearTestImages(Rule):
    distance: int

    def judged(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        assert context.test_looks is not None
        table = gathered(context.test_looks, self.name) | f"{self.name}: table" >> beam.Map(
            table_of
        )
        tests = beam.pvalue.AsSingleton(table, default_value=table_of([]))
        return rows | f"{self.name}: compare" >> beam.FlatMap(
            _compared, tests, self.distance, self.name
        )


def _compared(row: Row, tests: TestLooks, distance: int, rule: str) -> Iterator[Row | Removal]:
    loss = nearest_test(row, tests, distance)
    return split(row, [] if loss is None else [loss], rule)
