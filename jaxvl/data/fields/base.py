"""What every field of a batch is: its options, its host half and its device half."""

from __future__ import annotations

import abc
import dataclasses
import fnmatch
from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax

from jaxvl.aliases import ColumnValue, HostArrays, Json
from jaxvl.config import check, nearest
from jaxvl.data.cache import Cache
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.base import Kind, Record, Source
from jaxvl.data.tokenizers import Tokenizer

Batch = dict[str, jax.Array]


class RowShape(NamedTuple):
    """Shape of one row of a batch entry, and its dtype."""

    shape: tuple[int, ...]
    dtype: type


@dataclasses.dataclass(frozen=True)
class Context:
    """What fields share with the model and with each other.

    Attributes:
      tokenizer: of the run.
      preprocess: what is seen of pictures; a field sets its own size.
      cache: of decoded and tokenised values.
    """

    tokenizer: Tokenizer
    preprocess: Preprocess
    cache: Cache


class Reader(Protocol):
    """The host half of a field, bound to a source.

    Attributes:
      columns: of the source; the loader reads these and no others.
      key: equal keys load equal values from a record, so that two views of a picture decode it
        once.
    """

    columns: tuple[str, ...]
    key: Hashable

    def load(self, record: Record) -> ColumnValue | None:
        """What the field takes from a record, once for all its rows; None: the record has none.
        Raises BadRecord."""

    def write(self, out: HostArrays, row: int, value: ColumnValue, draws: Sequence[float]) -> None:
        """Fills row `row` of the field's arrays. `draws` are the field's uniform numbers in [0, 1)
        for this row."""


class Field(abc.ABC):
    """One named entry of a batch (some fill several). A registered frozen dataclass.

    Attributes:
      draws: uniform numbers that one row may use.
    """

    draws: ClassVar[int] = 0

    @abc.abstractmethod
    def arrays(self, name: str) -> dict[str, RowShape]:
        """Batch entry -> shape and dtype of its row, for a field of this name."""

    @abc.abstractmethod
    def reader(self, name: str, source: Source, context: Context) -> Reader:
        """The host half. Raises ConfigError at one of the field's options that the source cannot
        serve."""

    def inputs(self, name: str) -> dict[str, str]:
        """Batch entry -> modality (`image`, `video`, `waveform`, `text`), of those that a model
        reads."""
        return {}

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """Columns without which a record is of no use: at least one of each entry. Raises
        ConfigError as `reader`."""
        return []

    def on_device(self, name: str, batch: Batch, keys: jax.Array, preprocess: Preprocess) -> Batch:
        """Changed entries of a training batch, inside the compiled step.

        Args:
          batch: the rows as the host made them.
          keys: random keys [B], one for each row, of this field alone.
        """
        return {}

    def compiled(self) -> Json:
        """Options that `on_device` reads; a JSON-able value. The others decide shapes, or what the
        host does."""
        return None


def match(source: Source, pattern: str, kinds: Sequence[Kind], option: str) -> list[str]:
    """Columns of a source that a pattern such as `name/*` names, in order.

    Args:
      kinds: what these columns may be.
      option: of the field, for the message.

    Raises:
      ConfigError: at `option`, where there is none, or one of another kind.
    """
    found = sorted(fnmatch.filter(source.columns, pattern)) if "*" in pattern else [pattern]
    known = ", ".join(
        f"{name} ({column.kind})" for name, column in list(source.columns.items())[:20]
    )
    missing = not found or found[0] not in source.columns
    hint = nearest(pattern, list(source.columns))
    check(
        not missing,
        option,
        f"{pattern!r} is no column of {source.name}{hint} (columns: {known or 'none'})",
    )
    for name in found:
        kind = source.columns[name].kind
        check(
            kind in kinds,
            option,
            f"{name!r} of {source.name} holds {kind}; must be {' or '.join(kinds)}",
        )
    return found
