"""The preparation as one Beam pipeline.

    ranges of numbers -> rows -> rule -> rule -> … -> places -> shards
                      \\-> bad      \\-> removed

Rows hold no pictures: sums and joins move texts and checksums only. What a run counts is written to
files of its work folder, which every runner can do.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from typing import Any

from jaxvl import paths
from jaxvl.data.preparing import losses, near, numbering, rows, shards
from jaxvl.data.preparing.gathering import PCollection, Pipeline, gathered
from jaxvl.data.preparing.losses import Context, Removal
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.rows import Bad, Row
from jaxvl.data.preparing.rules import rules_of

LONGEST_SHOWN = 300  # characters of a text in the report
Span = tuple[
    str, int, int
]  # name of a list of test pictures, or empty; first and last number (excluded)
BAD = "bad"  # what records that cannot be used are counted and shown under, `bad/CAUSE`


def build(
    pipeline: Pipeline, config: PrepareConfig, records: int, tests: dict[str, int], folder: str
) -> None:
    """Adds all steps to a Beam pipeline.

    Args:
      records: of the source.
      tests: name -> records of each list of test pictures.
      folder: where shards go; its folder `WORK` keeps what a run that is started again can use.
    """
    import apache_beam as beam

    config_json = rows.as_json(config)
    work = f"{folder}/{shards.WORK}"
    ranges = _spread(pipeline, {"": records}, config.range_records, "ranges")
    read = ranges | "read" >> beam.FlatMap(_read, config_json, work)
    left = raw = read | "rows" >> beam.Filter(isinstance, Row)
    bad = read | "bad records" >> beam.Filter(isinstance, Bad)
    context = Context(raw, config_json, work, _test_looks(pipeline, config, tests, config_json))
    removed = []
    for rule in rules_of(config):
        left, gone = losses.apply(rule, left, context)
        removed.append(gone)
    numbered = numbering.by_shard(left, config.shard_records)
    written = numbered | "write shards" >> beam.FlatMap(shards.write_shard, config_json, folder)
    all_removed = tuple(removed) | "all removals" >> beam.Flatten(pipeline=pipeline)
    _count(raw, bad, all_removed, work)
    _examples(bad, all_removed, config, work)
    _write(written, "written", work)


def _ranges(counted: tuple[str, int], size: int) -> Iterator[tuple[Span, None]]:
    name, records = counted
    for start in range(0, records, size):
        yield (name, start, min(start + size, records)), None


def _spread(pipeline: Pipeline, counts: dict[str, int], size: int, name: str) -> PCollection:
    """PCollection of (range, nothing) of all records.

    Ranges are made by a worker, since a pipeline that lists them is too large for some runners; a
    group by key, which all have, gives each to whichever worker is free.
    """
    import apache_beam as beam

    counted = pipeline | name >> beam.Create(list(counts.items()), reshuffle=False)
    return (
        counted
        | f"split {name}" >> beam.FlatMap(_ranges, size)
        | f"spread {name}" >> beam.GroupByKey()
    )


def _read(group: tuple[Span, Any], config: str, work: str) -> Iterator[Row | Bad]:
    _, start, stop = group[0]
    return rows.read_range(config, work, start, stop)


def _test_looks(
    pipeline: Pipeline, config: PrepareConfig, tests: dict[str, int], config_json: str
) -> PCollection | None:
    import apache_beam as beam

    if not tests or config.rules.test_distance is None:
        return None
    ranges = _spread(pipeline, tests, config.range_records, "test ranges")
    return ranges | "look at tests" >> beam.FlatMap(_look_at_tests, config_json)


def _look_at_tests(group: tuple[Span, Any], config: str) -> Iterator[near.TestLook]:
    return near.read_test_range(group[0], config)


# --------------------------------------------------------------------------------------------------
# Counts and examples


def _of_row(row: Row) -> tuple[str, tuple[int, int]]:
    return "rows", (1, len(row.texts))


def _of_bad(bad: Bad) -> tuple[str, tuple[int, int]]:
    return f"{BAD}/{bad.cause}", (1, 0)


def _of_removal(removal: Removal) -> tuple[str, tuple[int, int]]:
    return removal.rule, (int(removal.record), len(removal.texts))


def _sum(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    records = 0
    texts = 0
    for more_records, more_texts in counts:
        records += more_records
        texts += more_texts
    return records, texts


def _count(raw: PCollection, bad: PCollection, removed: PCollection, work: str) -> None:
    """Writes {rule, `rows` or `bad/CAUSE`: [records, texts]}."""
    import apache_beam as beam

    counts = (
        raw | "count: rows" >> beam.Map(_of_row),
        bad | "count: bad" >> beam.Map(_of_bad),
        removed | "count: removals" >> beam.Map(_of_removal),
    )
    summed = counts | "count: all" >> beam.Flatten() | "count: sum" >> beam.CombinePerKey(_sum)
    _write(summed, "counts", work)


def _example(removal: Removal, seed: int) -> tuple[str, list[tuple[str, int, list[str], str]]]:
    texts = [text[:LONGEST_SHOWN] for text in removal.texts[:3]]
    return removal.rule, [(_draw(seed, removal.position), removal.position, texts, removal.why)]


def _bad_example(bad: Bad, seed: int) -> tuple[str, list[tuple[str, int, list[str], str]]]:
    return f"{BAD}/{bad.cause}", [
        (_draw(seed, bad.position), bad.position, [], bad.detail[:LONGEST_SHOWN])
    ]


def _draw(seed: int, position: int) -> str:
    """Those with the least are the examples, whatever order the records come in."""
    return hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).hexdigest()


def _smallest(lists: Iterable[list[Any]], most: int) -> list[Any]:
    return heapq.nsmallest(most, (member for members in lists for member in members))


def _examples(bad: PCollection, removed: PCollection, config: PrepareConfig, work: str) -> None:
    """Writes {rule or `bad/CAUSE`: [[draw, position, texts, why], …]}."""
    import apache_beam as beam

    shown = (
        removed | "examples: of removals" >> beam.Map(_example, config.seed),
        bad | "examples: of bad records" >> beam.Map(_bad_example, config.seed),
    )
    chosen = (
        shown
        | "examples: all" >> beam.Flatten()
        | "examples: choose" >> beam.CombinePerKey(_smallest, config.examples)
    )
    _write(chosen, "examples", work)


def _write(values: PCollection, name: str, work: str) -> None:
    """Writes all values of a small PCollection to `work/NAME.json`, sorted; nothing where there are
    none."""
    import apache_beam as beam

    _ = gathered(values, name) | f"{name}: write" >> beam.Map(_write_json, f"{work}/{name}.json")


def _write_json(values: Iterable[Any], file: str) -> None:
    lines = sorted(json.dumps(value, sort_keys=True, ensure_ascii=True) for value in values)
    paths.write_text(paths.as_path(file), "[\n" + ",\n".join(lines) + "\n]\n")
