"""A demo recipe's records as a source.

Columns: `image`, `key`, `style`, `class_label` with its names in every language; `name/LANGUAGE`
  and `keywords/LANGUAGE`; where the
recipe has them, `frames`, sounds as `KIND/LANGUAGE` (`speech/fr`), and coarser classes (`group`,
`colour`).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxvl.config import check, nearest
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import RecordSource
from jaxvl.data.sources.base import Column, Log, Record, Source
from jaxvl.data.sources.demo.store import Corpus
from jaxvl.data.sources.opened import opened

_GIVEN = {"key": Column("text"), "image": Column("image"), "style": Column("text")}


@dataclasses.dataclass(frozen=True)
class Recipe(abc.ABC):
    """Builds demo data once into the cache folder, and opens it.

    Attributes:
      split: which part of the records; None: all of them.
    """

    split: str | None = dataclasses.field(default=None, kw_only=True)
    columns: ClassVar[Mapping[str, Column]] = {}  # beside those that all recipes have

    @abc.abstractmethod
    def prepare(self, log: Log = print) -> Corpus:
        """The corpus, built if it is not in the cache."""

    def open(self, log: Log = print) -> DemoSource:
        """See `base.SourceConfig`."""
        if self.split is None:
            return DemoSource(self.prepare(log=log), self.columns)
        whole = opened(dataclasses.replace(self, split=None), log)
        splits = whole.corpus.splits
        check(
            self.split in splits,
            "split",
            f"{self.split!r} is none{nearest(self.split, splits)} (splits: {', '.join(splits)})",
        )
        return DemoSource(whole.corpus, self.columns, self.split)


class DemoSource(Source):
    """Records of a built corpus.

    Args:
      corpus: the corpus.
      more: columns of this recipe beside those that all have.
      split: of its records; None: all.
    """

    def __init__(self, corpus: Corpus, more: Mapping[str, Column], split: str | None = None):
        self.corpus = corpus
        self.split = split
        self.name = (
            corpus.folder.name if split is None else f"{corpus.folder.name}, split {split!r}"
        )
        self.fingerprint = f"{corpus.fingerprint}/{split or ''}"
        self._more = dict(more)
        self._index = corpus.index(split)

    def __len__(self) -> int:
        return len(self._index)

    @functools.cached_property
    def columns(self) -> Mapping[str, Column]:
        names = self.corpus.class_set()
        found = {**_GIVEN, "class_label": Column("class", classes=names)}
        for language in names.names:
            found[f"name/{language}"] = Column("text", optional=True)
            found[f"keywords/{language}"] = Column("texts", optional=True)
        for thing in self.corpus.optional:
            if thing == "frames":
                found[thing] = Column("frames", optional=True)
            elif "/" in thing:
                found[thing] = Column("audio", optional=True)
        for attribute in self.corpus.attributes:
            _, values = self.corpus.attribute_of_labels(attribute)
            found[attribute] = Column("class", classes=ClassSet({"en": tuple(values)}))
        return found | self._more

    @functools.cached_property
    def _records(self) -> RecordSource:
        return RecordSource(self.corpus.folder / "records.array_record", self._index)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`. A record is read whole, whatever is asked for."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._flat(self._records[i], columns)

    def _flat(self, data: Mapping[str, Any], columns: Collection[str] | None) -> dict[str, Any]:
        out = {}
        wanted = (
            self.columns if columns is None else [name for name in columns if name in self.columns]
        )
        for name in wanted:
            value = self._value(data, name)
            if value is not None:
                out[name] = value
        return out

    def _value(self, data: Mapping[str, Any], name: str) -> Any:
        if name == "class_label":
            return data["label"]
        if name in data:
            return data[name] or None
        kind, _, language = name.partition("/")
        if kind == "name":
            return data["captions"].get(language, [None])[0]
        if kind == "keywords":
            return data["captions"].get(language, [None, None])[1] or None
        if language:
            return data.get("audio", {}).get(kind, {}).get(language)
        column = self.columns.get(name)
        if column is None or column.kind != "class":
            return None
        return int(self.corpus.attribute_of_labels(name)[0][data["label"]])

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`: the classes are known without reading."""
        if name == "class_label":
            return self.corpus.labels_of(self._index)
        if name in self.corpus.attributes:
            return self.corpus.attribute_of_labels(name)[0][self.corpus.labels_of(self._index)]
        return None

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name in self.corpus.optional:
            return self.corpus.optional[name][self._index]
        return super().present(name)

    def __reduce__(self) -> tuple[Callable[..., DemoSource], tuple[object, ...]]:
        return DemoSource, (self.corpus, self._more, self.split)
