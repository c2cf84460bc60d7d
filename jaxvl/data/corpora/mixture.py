"""Several corpora as one, rows drawn from each by weight.

    corpus = dict(name="mixture", parts=(
        dict(corpus=dict(name="emoji"), split="train_a", weight=0.85),
        dict(corpus=dict(name="stamps"), split="train", weight=0.15),
    ))

The mixture has the one split `train`. Its records are those of the parts, one part after the other, with labels of their
own: equal labels are the same thing of the same part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any

import grain
import numpy as np

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.corpora import CORPORA
from jaxvl.data.corpora.prepared import prepared
from jaxvl.data.draws import epochs
from jaxvl.data.records import Record

SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Part:
    """One corpus of a mixture.

    Attributes:
      corpus: by name, with its options.
      split: which of its splits.
      weight: its share of the rows, relative to the other parts' weights. None (then for all parts): its number of records,
        so that every record is met equally often.
    """

    corpus: Annotated[Any, CORPORA]
    split: str
    weight: float | None = None

    def __post_init__(self):
        check(self.weight is None or self.weight > 0, "weight", f"{self.weight!r} must be > 0, or None for the number of records")


@CORPORA.register("mixture")
@dataclasses.dataclass(frozen=True)
class Mixture:
    """See the module's text.

    Attributes:
      parts: the corpora.
    """

    parts: tuple[Part, ...]

    def __post_init__(self):
        check(bool(self.parts), "parts", "must name at least one corpus")
        given = [part.weight is not None for part in self.parts]
        check(all(given) or not any(given), "parts", f"the weights {[p.weight for p in self.parts]} must be given for all parts or none")

    def prepare(self, log: Callable[[str], None] = print) -> MixedCorpus:
        """The parts, built where needed.

        Raises ConfigError where a part has no such split, DataError as the parts do.
        """
        corpora = [prepared(part.corpus, log) for part in self.parts]
        for i, (part, corpus) in enumerate(zip(self.parts, corpora)):
            if part.split not in corpus.splits:
                hint = f"{nearest(part.split, corpus.splits)} (splits: {', '.join(corpus.splits)})"
                raise ConfigError(f"corpus.parts[{i}].split", f"{part.split!r} is not a split of the corpus{hint}")
        return MixedCorpus(self.parts, corpora)


class MixedCorpus:
    """The interface of `store.Corpus` over several prepared corpora.

    Attributes:
      folder: a name made of the parts' (there is no such folder).
      splits: `train`.
    """

    splits = [SPLIT]

    def __init__(self, parts: Sequence[Part], corpora: Sequence[Any]):
        self._parts, self._corpora = parts, corpora
        self.folder = pathlib.Path("+".join(f"{corpus.folder.name}.{part.split}" for part, corpus in zip(parts, corpora)))
        self._first = np.cumsum([0, *(len(corpus.class_names()) for corpus in corpora)])[:-1].tolist()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parts' content and splits, in their order."""
        parts = [(corpus.fingerprint, part.split) for part, corpus in self._each()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def split(self, name: str, having: Iterable[Collection[str]] = ()) -> MixedSource:
        """Random access to the records of all parts. Raises KeyError; DataError where a part lacks what is asked for."""
        self._known(name)
        having = list(having)
        sources = [corpus.split(part.split, having) if having else corpus.split(part.split) for part, corpus in self._each()]
        weights = [part.weight if part.weight is not None else len(source) for part, source in zip(self._parts, sources)]
        return MixedSource(sources, weights, self._first)

    def labels(self, split: str) -> np.ndarray:
        """Label of every record, int32 [n]."""
        self._known(split)
        return np.concatenate([corpus.labels(part.split) + first for (part, corpus), first in zip(self._each(), self._first)])

    def class_names(self, locale: str = "en") -> list[str | None]:
        """Name of every label in a language. Raises DataError for a language that a part does not have."""
        return [name for corpus in self._corpora for name in corpus.class_names(locale)]

    def texts(self, split: str, locales: Collection[str] | None = None) -> Iterator[str]:
        """Names and keywords of all parts."""
        self._known(split)
        for part, corpus in self._each():
            yield from corpus.texts(part.split, locales)

    def _each(self) -> Iterator[tuple[Part, Any]]:
        return zip(self._parts, self._corpora)

    def _known(self, split: str) -> None:
        if split not in self.splits:
            raise KeyError(split)


class MixedSource(Sequence):
    """Random access to the records of several sources; `[i]` counts through them one after the other.

    Args:
      weights: of each source's rows in `order`.
      first_labels: what is added to each source's labels.
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float], first_labels: Sequence[int]):
        self._sources, self._weights, self._first_labels = sources, weights, first_labels
        self._starts = np.cumsum([0, *map(len, sources)]).tolist()
        self.path = " + ".join(str(getattr(source, "path", "?")) for source in sources)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Record:
        """Raises BadRecord."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        record = self._sources[part][i - self._starts[part]]
        return {**record, "key": f"{part}/{record['key']}", "label": record["label"] + self._first_labels[part]}

    def order(self, seed: int, shuffle: bool) -> grain.MapDataset:
        """The endless stream of record numbers: the share of each source is exact, and each goes through its own epochs,
        every one a new permutation if `shuffle`. Position `i` can be asked for without the ones before it."""
        streams = []
        for part, (start, end) in enumerate(zip(self._starts, self._starts[1:])):
            streams.append(epochs(start, end, seed, shuffle, part))
        return grain.MapDataset.mix(streams, self._weights)
