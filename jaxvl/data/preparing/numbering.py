"""Places of the rows that are left: in the order of the source, in shards of equal size.

A row's place is the number of rows before it: those of the blocks of the source before its own,
which are counted once, and those before it in its block. So shards are the same whatever the
runner, the workers and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from jaxvl.data.preparing.gathering import PCollection, gathered
from jaxvl.data.preparing.rows import Row

BLOCK = 10_000  # positions of the source
Starts = tuple[
    np.ndarray, np.ndarray
]  # numbers of the blocks that have rows, ascending; rows before each


def starts_of(counts: Iterable[tuple[int, int]]) -> Starts:
    """First places of blocks, of their numbers and how many rows each has."""
    ordered = sorted(counts)
    blocks = np.array([block for block, _ in ordered], np.int64)
    sizes = np.array([size for _, size in ordered], np.int64)
    return blocks, np.cumsum(sizes) - sizes


def _with_block(row: Row) -> tuple[int, Row]:
    return row.position // BLOCK, row


def _one(row: Row) -> tuple[int, int]:
    return row.position // BLOCK, 1


def placed(
    group: tuple[int, Iterable[Row]], starts: Starts, shard_records: int
) -> Iterator[tuple[int, tuple[int, Row]]]:
    """(shard, (place in the shard, row)) of the rows of one block."""
    blocks, firsts = starts
    first = int(firsts[np.searchsorted(blocks, group[0])])
    for number, row in enumerate(sorted(group[1], key=lambda row: row.position)):
        place = first + number
        yield place // shard_records, (place % shard_records, row)


def by_shard(rows: PCollection, shard_records: int) -> PCollection:
    """PCollection of (shard, its (place, row)s in any order)."""
    import apache_beam as beam

    counts = (
        rows | "numbering: count" >> beam.Map(_one) | "numbering: blocks" >> beam.CombinePerKey(sum)
    )
    starts = gathered(counts, "numbering") | "numbering: starts" >> beam.Map(starts_of)
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    side = beam.pvalue.AsSingleton(starts, default_value=none)
    grouped = (
        rows
        | "numbering: by block" >> beam.Map(_with_block)
        | "numbering: group" >> beam.GroupByKey()
    )
    return (
        grouped
        | "numbering: places" >> beam.FlatMap(placed, side, shard_records)
        | "numbering: shards" >> beam.GroupByKey()
    )
