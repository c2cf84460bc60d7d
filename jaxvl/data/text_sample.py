"""The texts that a vocabulary is trained on, drawn by seed, without reading a picture.

A source of N records is cut into as many equal stretches as texts are asked for, and one record is
drawn from each. So records are drawn without replacement and read in order, and nothing is kept in
memory of the others, however many there are. Which texts are drawn depends on the source, the
columns, the number and the seed alone: every process draws the same.
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.draws import Uniforms
from jaxvl.data.records import BadRecord, DataError, causes
from jaxvl.data.sources.base import Source
from jaxvl.data.unigram import LONGEST

TEXT_KINDS = ("text", "texts")
CHUNK = 2048  # records that are drawn and read together
RULE = 1  # raised when other texts are drawn for the same arguments
PLAIN = "{}"  # the template of a text as it is
Templates = Mapping[str, Sequence[str]]


def text_columns(source: Source, patterns: Iterable[str], key: str = "columns") -> tuple[str, ...]:
    """The text columns that match any of the patterns, in the source's order; `name/*` matches
    `name/en` and `name/de`.

    Raises:
      ConfigError: at `key`; a pattern matches no column of kind text or texts.
    """
    texts = [name for name, column in source.columns.items() if column.kind in TEXT_KINDS]
    matched: set[str] = set()
    for pattern in patterns:
        found = [name for name in texts if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            column = source.columns.get(pattern)
            what = (
                f"is of kind {column.kind}, not text or texts"
                if column
                else f"matches no column{nearest(pattern, texts)}"
            )
            raise ConfigError(
                key,
                f"{pattern!r} {what} (text columns of {source.name}: {', '.join(texts) or 'none'})",
            )
        matched.update(found)
    return tuple(name for name in texts if name in matched)


def sample_texts(
    source: Source,
    columns: Sequence[str],
    n: int,
    seed: int,
    *,
    templates: Templates = MappingProxyType({}),
    threads: int = 8,
    skipped: Counter[str] | None = None,
) -> Iterator[str]:
    """About `n` of the texts of a source, or all of them if there are fewer; each cut to
    `unigram.LONGEST` characters.

    Every record is as likely to be drawn, and so is every text of a record: one where there are
    more records than `n`, all where there are few. Other columns are not asked for; cheap columns
    are not read record by record.

    Args:
      columns: names or patterns of text columns.
      templates: of a column, those that its texts are read in: `{}` stands for the text, which
        counts once in each. A column that is not named has its texts as they are.
      threads: that read records.
      skipped: counts records that cannot be read, by cause.

    Raises:
      ConfigError: a pattern matches no text column.
      DataError: none of the records that were drawn can be read.
    """
    check(n >= 1, "sample", f"{n!r} must be >= 1")
    reader = _Texts(source, text_columns(source, columns), templates)
    total = len(source)
    skipped = Counter() if skipped is None else skipped
    records = min(n, total)
    each = n / max(records, 1)
    before = sum(skipped.values())
    draws = Uniforms(seed, "texts", n=3)
    with concurrent.futures.ThreadPoolExecutor(threads, "jaxvl-texts") as pool:
        for first in range(0, records, CHUNK):
            stretches = np.arange(first, min(first + CHUNK, records))
            numbers = draws(stretches)
            positions = _positions(stretches, records, total, numbers[:, 0])
            parts = (
                [positions[i::threads] for i in range(threads)]
                if not reader.is_cheap
                else [positions]
            )
            read = [iter(texts) for texts in pool.map(reader.read_all, parts)]
            for i, (_, share, start) in enumerate(numbers.tolist()):
                texts = next(read[i % len(read)])
                if isinstance(texts, BadRecord):
                    skipped[texts.cause] += 1
                    continue
                for text in _some(texts, each, share, start):
                    yield text[:LONGEST]
    bad = sum(skipped.values()) - before
    if records and bad == records:
        raise DataError(
            f"{source.name}: none of {records:,} records that were drawn for the vocabulary "
            f"can be read ({causes(skipped)})"
        )


def sample_origin(
    source: Source,
    columns: Sequence[str],
    n: int,
    seed: int,
    *,
    templates: Templates = MappingProxyType({}),
) -> str:
    """Says what `sample_texts` draws, for `make_tokenizer`; empty where the source does not know
    its content."""
    if not source.fingerprint:
        return ""
    said = [source.fingerprint, text_columns(source, columns), n, seed, LONGEST, RULE]
    wrapped = {name: list(given) for name, given in templates.items() if list(given) != [PLAIN]}
    if wrapped:
        said.append(wrapped)
    return json.dumps(said, sort_keys=True)


class _Texts:
    """The texts of one record at a time, each in the templates of its column."""

    def __init__(self, source: Source, columns: Sequence[str], templates: Templates):
        self._source = source
        self._columns = columns
        self._templates = {name: tuple(templates.get(name, (PLAIN,))) for name in columns}
        self._cheap = {
            name: values for name in columns if (values := source.column(name)) is not None
        }
        self._rest = tuple(name for name in columns if name not in self._cheap)
        self._present = {name: source.present(name) for name in self._cheap}
        self.is_cheap = not self._rest

    def read(self, i: int) -> list[str] | BadRecord:
        """All texts of a record, in the order of the columns; a BadRecord is returned, for whoever
        counts."""
        record: Mapping[str, Any] = {}
        if self._rest:
            try:
                record = self._source.read(i, self._rest)
            except BadRecord as error:
                return error
        out: list[str] = []
        for name in self._columns:
            value = self._cheap_value(name, i) if name in self._cheap else record.get(name)
            texts = [value] if isinstance(value, str) else value or ()
            for text in texts:
                if isinstance(text, str) and text.strip():
                    out.extend(form.replace("{}", text) for form in self._templates[name])
        return out

    def read_all(self, positions: Sequence[int]) -> list[list[str] | BadRecord]:
        """`read` of several records."""
        return [self.read(i) for i in positions]

    def _cheap_value(self, name: str, i: int) -> Any:
        present = self._present[name]
        return None if present is not None and not present[i] else self._cheap[name][i]


def _positions(stretches: np.ndarray, count: int, total: int, draws: np.ndarray) -> list[int]:
    """One record of each of `count` equal stretches of `total` records, in exact integers."""
    positions = []
    for k, draw in zip(stretches.tolist(), draws.tolist()):
        first = k * total // count
        end = (k + 1) * total // count
        positions.append(min(first + int(draw * (end - first)), end - 1))
    return positions


def _some(texts: Sequence[str], each: float, share: float, start: float) -> Iterator[str]:
    """`each` of the texts on average, from a place that is drawn."""
    count = int(each) + (share < each % 1)
    if count >= len(texts):
        return iter(texts)
    first = int(start * len(texts))
    return itertools.islice(itertools.cycle(texts), first, first + count)
