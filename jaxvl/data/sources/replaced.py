"""A source some of whose texts or labels are replaced, and a column that tells which.

    source = dict(name="replaced", column="name/en", share=0.3,
        source=dict(name="shapes", split="train_a"))                       # wrong captions
    source = dict(name="replaced", column="text", share=0.5, flag="visual",
        texts=("we thank you for your visit", …), source=…)                # of another kind
    source = dict(name="replaced", column="class_label", share=0.4, source=…)   # wrong labels

It makes the data of experiments with noisy pairs or labels, or with texts that no picture shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import numpy as np

from jaxvl.config import ConfigError, NonEmpty, Range, Seed, check, nearest
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Log, Record, Source


@SOURCES.register("replaced")
@dataclasses.dataclass(frozen=True)
class Replaced:
    """See the module's text.

    Attributes:
      source: of the records.
      column: of texts, one a record, or of classes.
      share: of the records whose text or class is replaced.
      texts: what takes a text's place, drawn for each record; empty: what another record has, which
        by chance may be the same.
      flag: further column of whole numbers: 1 where the value is the record's own, 0 where it was
        replaced.
      seed: of what is drawn, once for every record (17 bytes of memory each).
    """

    source: Annotated[Any, SOURCES]
    column: Annotated[str, NonEmpty("the name of a column")] = "text"
    share: Annotated[float, Range(0.0, 1.0)] = 0.5
    texts: tuple[str, ...] = ()
    flag: Annotated[str, NonEmpty("the name of a column")] = "own_text"
    seed: Seed = 0

    def __post_init__(self):
        check(0 <= self.share <= 1, "share", f"{self.share!r} must be in [0, 1]")
        check(all(text.strip() for text in self.texts), "texts", "must not hold an empty text")

    def open(self, log: Log = print) -> ReplacedSource:
        """See `base.SourceConfig`."""
        try:
            source = self.source.open(log)
        except ConfigError as error:
            raise error.under("source") from None
        kinds = ("text",) if self.texts else ("text", "class")
        known = [name for name, column in source.columns.items() if column.kind in kinds]
        problem = (
            f"{self.column!r} is no column of {source.name} with one {' or '.join(kinds)} a record"
            f"{nearest(self.column, known)} (such columns: {', '.join(known) or 'none'})"
        )
        check(self.column in known, "column", problem)
        problem = f"{self.flag!r} is a column of {source.name} already; choose another name"
        check(self.flag not in source.columns, "flag", problem)
        return ReplacedSource(source, self)


class ReplacedSource(Source):
    """See `Replaced`."""

    def __init__(self, source: Source, config: Replaced):
        self.source = source
        self.name = f"{source.name}, {config.share:.0%} of {config.column!r} replaced"
        said = [config.column, config.share, config.texts, config.flag, config.seed]
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        self.fingerprint = f"{source.fingerprint}/replaced {digest[:32]}"
        self.columns = {**source.columns, config.flag: Column("int")}
        self.parts = source.parts
        self._config = config
        drawn = np.random.Generator(np.random.Philox(key=config.seed)).random((len(source), 2))
        self._own = drawn[:, 0] >= config.share
        options = len(config.texts) or len(source)
        self._choice = (drawn[:, 1] * options).astype(np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        config = self._config
        wanted = set(self.columns if columns is None else columns)
        below = wanted - {config.flag}
        record = dict(self.source.read(i, below)) if below else {}
        if config.flag in wanted:
            record[config.flag] = int(self._own[i])
        if config.column in record and not self._own[i]:
            record[config.column] = self._other(int(self._choice[i]), record[config.column])
        return record

    def _other(self, choice: int, value: str | int) -> str | int:
        """What takes the place of a value; itself where the other record has none."""
        if self._config.texts:
            return self._config.texts[choice]
        column = self._config.column
        return self.source.read(choice, (column,)).get(column, value)

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`: texts are read one by one."""
        if name == self._config.flag:
            return self._own.astype(np.int64)
        values = self.source.column(name)
        if name != self._config.column:
            return values
        present = self.source.present(name)
        whole = present is None or present.all()
        if values is None or self.columns[name].kind == "text" or not whole:
            return None
        return np.where(self._own, values, values[self._choice])

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name == self._config.flag:
            return np.ones(len(self), bool)
        return self.source.present(name)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self.source.shards()

    def left_out(self) -> Mapping[str, int]:
        """See `base.Source`."""
        return self.source.left_out()
