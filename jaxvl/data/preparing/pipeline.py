"""The preparation as one Beam pipeline.

    ranges of numbers -> rows -> rule -> rule -> … -> places -> shards
                      \\-> bad      \\-> removed

Rows hold no pictures: sums and joins move texts and checksums only. What a run counts is written to files of its work folder,
which every runner can do.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxvl import paths
from jaxvl.data.preparing import losses, near, numbering, rows, shards
from jaxvl.data.preparing.losses import Context, Removal
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.rows import Bad, Row
from jaxvl.data.preparing.rules import rules_of

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.pvalue import PCollection
else:
    Pipeline = PCollection = Any

LONGEST_SHOWN = 300  # characters of a text in the report
BAD = "bad"  # what records that cannot be used are counted and shown under, `bad/CAUSE`


def build(pipeline: Pipeline, config: PrepareConfig, records: int, tests: dict[str, int], folder: str) -> None:
    """Adds all steps to a Beam pipeline.

    Args:
      records: of the source.
      tests: name -> records of each list of test pictures.
      folder: where shards go; its folder `WORK` keeps what a run that is started again can use.
    """
    import apache_beam as beam

    said = rows.as_json(config)
    work = f"{folder}/{shards.WORK}"
    ranges = _ranges(records, config.range_records)
    read = _spread(pipeline, ranges, "ranges") | "read" >> beam.FlatMap(_read, said, work)
    left = raw = read | "rows" >> beam.Filter(isinstance, Row)
    bad = read | "bad records" >> beam.Filter(isinstance, Bad)
    context = Context(raw, said, work, _test_looks(pipeline, config, tests, said))
    removed = []
    for rule in rules_of(config):
        left, gone = losses.apply(rule, left, context)
        removed.append(gone)
    numbered = numbering.by_shard(left, config.shard_records)
    written = numbered | "write shards" >> beam.FlatMap(shards.write_shard, said, folder)
    all_removed = tuple(removed) | "all removals" >> beam.Flatten(pipeline=pipeline)
    _count(raw, bad, all_removed, work)
    _examples(bad, all_removed, config, work)
    _write(written, "written", work)


def _ranges(records: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, records)) for start in range(0, records, size)]


def _read(group: tuple[tuple[int, int], Any], config: str, work: str) -> Iterator[Row | Bad]:
    start, stop = group[0]
    return rows.read_range(config, work, start, stop)


def _test_looks(pipeline: Pipeline, config: PrepareConfig, tests: dict[str, int], said: str) -> PCollection | None:
    import apache_beam as beam

    if not tests or config.rules.test_distance is None:
        return None
    ranges = [(name, *span) for name, n in tests.items() for span in _ranges(n, config.range_records)]
    return _spread(pipeline, ranges, "test ranges") | "look at tests" >> beam.FlatMap(_look_at_tests, said)


def _spread(pipeline: Pipeline, ranges: list[tuple[Any, ...]], name: str) -> PCollection:
    """PCollection of (range, nothing): a group by key, which all runners have, gives each range to whichever worker is free."""
    import apache_beam as beam

    keyed = pipeline | name >> beam.Create([(one, None) for one in ranges], reshuffle=False)
    return keyed | f"spread {name}" >> beam.GroupByKey()


def _look_at_tests(group: tuple[tuple[str, int, int], Any], config: str) -> Iterator[near.TestLook]:
    return near.read_test_range(group[0], config)


# ---------------------------------------------------------------------------------------------------------------------
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
    return f"{BAD}/{bad.cause}", [(_draw(seed, bad.position), bad.position, [], bad.detail[:LONGEST_SHOWN])]


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
    chosen = shown | "examples: all" >> beam.Flatten() | "examples: choose" >> beam.CombinePerKey(_smallest, config.examples)
    _write(chosen, "examples", work)


def _write(values: PCollection, name: str, work: str) -> None:
    """Writes all values of a small PCollection to `work/NAME.json`, sorted; nothing where there are none."""
    import apache_beam as beam

    together = values | f"{name}: no key" >> beam.Map(_without_key) | f"{name}: together" >> beam.GroupByKey()
    _ = together | f"{name}: write" >> beam.Map(_write_json, f"{work}/{name}.json")


def _without_key(value: Any) -> tuple[None, Any]:
    return None, value


def _write_json(together: tuple[None, Iterable[Any]], file: str) -> None:
    lines = sorted(json.dumps(value, sort_keys=True, ensure_ascii=True) for value in together[1])
    paths.write_text(paths.as_path(file), "[\n" + ",\n".join(lines) + "\n]\n")
