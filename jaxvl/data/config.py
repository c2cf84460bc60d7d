"""Data of a task, as a config says it: which records, in which order, which fields."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import numpy as np

from jaxvl.aliases import Json
from jaxvl.config import Batch, ConfigError, PathText, Range, Steps, Threads, Tokens, check, nearest
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import RowShape
from jaxvl.data.fields.caption import Caption
from jaxvl.data.packing import LEAST
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source
from jaxvl.data.sources.selected import Selected, select

POSITION = "position"  # batch entry, int32 [B]: place of a row in the task's stream, modulo 2^31
# entry of a batch that is trained with, uint8 [B]: what each row's process says with it
# (`hosts.Signal`)
SIGNAL = "signal"
PACKED = (
    "segment",
    "lengths",
    "weight",
)  # entries of interleaved rows beside their fields' (`packing.py`)


@dataclasses.dataclass(frozen=True)
class Interleave:
    """Rows of several consecutive records each, as documents have them (`packing.py`), for models
    that read them (cosmo).

    Attributes:
      records: K, each with an `image` and a `text`.
      length: tokens R of such a row; None: K T, so that no text is cut.
    """

    records: Annotated[int, Range(2, 1_024)]
    length: Tokens | None = None


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """How records are read; nothing of it changes what is read.

    Attributes:
      threads: for reading and decoding; of each process that reads.
      processes: that read, each with its own Python (`reading/processes.py`). 0: the threads of the
        training process read, which is enough where most time goes into decoding and scaling JPEGs:
        that runs beside other threads. Python itself runs in one thread of a process at a time, so
        that processes are faster where a record costs little else: small pictures, texts, sources
        written in Python. They need idle cores, and about 70 MB and one or two seconds of a core
        each to start.
      prefetch_mb: memory of batches that are made ahead; one batch is always made ahead.
      cache_mb: memory for what is read, decoded and tokenised, so that small data is read once. 0:
        nothing is kept. Of all processes together: each has its share.
    """

    threads: Threads = 4
    processes: Annotated[int, Range(0, 1_024)] = 0
    prefetch_mb: Annotated[int, Range(1, 16_777_216)] = 512
    cache_mb: Annotated[int, Range(0, 16_777_216)] = 1024

    def __post_init__(self):
        for name, least in (("threads", 1), ("processes", 0), ("prefetch_mb", 1), ("cache_mb", 0)):
            check(getattr(self, name) >= least, name, f"{getattr(self, name)!r} must be >= {least}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data of one task.

    Attributes:
      source: records by name of their format, or of a recipe that builds demo data.
      batch: rows B of the global batch.
      fields: batch entry -> what it holds.
      tables: name -> table whose columns the records have besides (`tables.py`): the folder
        `RUN/tables/TABLE`, or the name of a table that a job of this run makes while it trains.
      keep: an integer column, of a table or of the source; records for which it is 0 or less are
        left out. None: all are kept.
      sampler: which records stand where in the stream; None: `mixture` where the source has parts,
        else `shuffled`.
      missing: records that lack a field: "skip" leaves them out; "mask" keeps those that have any
        of the model's inputs, with `has_NAME` in the batch for each of these, and zeros, or a text
        of padding, where a row does not have it. Other fields, such as labels, have no mask:
        records that lack one of them are left out.
      interleave: rows of several records.
      reader: how records are read.
      error_budget: share of bad records, of all hosts together, that a run goes on with; it ends
        when their share is surely above it (`budget.py`).
      error_minimum: bad records that there must be before the run ends.
    """

    source: Annotated[Any, SOURCES]
    batch: Batch
    fields: dict[str, Annotated[Any, FIELDS]]
    sampler: Annotated[Any, SAMPLERS] | None = None
    tables: dict[str, PathText] = dataclasses.field(default_factory=dict)
    keep: str | None = None
    missing: Literal["skip", "mask"] = "skip"
    interleave: Interleave | None = None
    reader: ReaderConfig = ReaderConfig()
    error_budget: float = 0.01
    error_minimum: Steps = 10

    def __post_init__(self):
        for name in ("batch", "error_minimum"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        check(
            0 <= self.error_budget <= 1,
            "error_budget",
            f"{self.error_budget!r} is a share; must be in [0, 1]",
        )
        check(self.missing in ("skip", "mask"), "missing", f"{self.missing!r} must be skip or mask")
        check(
            bool(self.fields),
            "fields",
            f"must name at least one field (known: {', '.join(FIELDS)})",
        )
        self._check_names()
        if self.interleave is not None:
            self._check_interleaved(self.interleave)

    def _check_names(self) -> None:
        own = [POSITION, SIGNAL]
        if self.missing == "mask":
            own += [f"has_{name}" for name in self.inputs]
        if self.interleave is not None:
            own += PACKED
        owners = dict.fromkeys(own, "the loader")
        for name, field in self.fields.items():
            for entry in field.arrays(name):
                check(
                    entry not in owners,
                    f"fields.{name}",
                    f"fills the batch entry {entry!r}, which {owners.get(entry)} fills",
                )
                owners[entry] = f"fields.{name}"
        if self.missing == "mask":
            check(bool(self.inputs), "missing", "'mask' needs a field that the model reads")

    def _check_interleaved(self, rows: Interleave) -> None:
        fit = (
            self.inputs.get("image") == "image"
            and self.inputs.get("text") == "text"
            and self.missing == "skip"
        )
        check(fit, "interleave", "needs an image and a text, and missing='skip'")
        check(
            self.texts_per_row == 1,
            "interleave",
            f"needs one text of each record (fields.text.count is {self.texts_per_row})",
        )
        length = rows.length
        least = LEAST * rows.records
        problem = f"{length!r} must be >= {LEAST} tokens for each of {rows.records} texts"
        check(length is None or length >= least, "interleave.length", problem)

    @property
    def records_per_row(self) -> int:
        """K."""
        return 1 if self.interleave is None else self.interleave.records

    @property
    def records_per_batch(self) -> int:
        """B K: how far a step moves the position of the task's stream."""
        return self.batch * self.records_per_row

    @property
    def inputs(self) -> dict[str, str]:
        """Batch entry -> modality, of those that a model reads."""
        found: dict[str, str] = {}
        for name, field in self.fields.items():
            found |= field.inputs(name)
        return found

    @property
    def required(self) -> set[str]:
        """Fields without which a record is left out: all of them, or under `missing="mask"` those
        that have no mask."""
        return {
            name
            for name, field in self.fields.items()
            if self.missing == "skip" or not field.inputs(name)
        }

    @property
    def text_length(self) -> int:
        """Tokens T of the longest text; 0 where there is none."""
        found = [
            shape.shape[-1]
            for name, shape in self.entries.items()
            if self.inputs.get(name) == "text"
        ]
        return max(found, default=0)

    @property
    def tokens(self) -> int:
        """Tokens of a row that the model reads: T, or R of an interleaved one."""
        if self.interleave is None:
            return self.text_length
        return self.interleave.length or self.interleave.records * self.text_length

    @property
    def texts_per_row(self) -> int:
        """N."""
        return max(
            [field.count for field in self.fields.values() if isinstance(field, Caption)], default=1
        )

    @property
    def entries(self) -> dict[str, RowShape]:
        """What one record gives a batch, but for `position` and the masks."""
        found: dict[str, RowShape] = {}
        for name, field in self.fields.items():
            found |= field.arrays(name)
        return found

    @property
    def record_shapes(self) -> dict[str, RowShape]:
        """What one record gives a batch."""
        shapes = self.entries
        if self.missing == "mask":
            shapes |= {f"has_{name}": RowShape((), np.bool_) for name in self.inputs}
        return shapes | {POSITION: RowShape((), np.int32)}

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the global batch: every field's arrays [B, …], `position` int32 [B], and `has_NAME`
        bool [B] under `missing="mask"`.

        Interleaved: [B, K, …], and text int32 [B, R], segment int32 [B, R], lengths int32 [B, K],
          weight float32 [B, R] (`packing.py`).
        """
        rows = self.record_shapes
        if self.interleave is not None:
            k = self.records_per_row
            r = self.tokens
            rows = {name: RowShape((k, *row.shape), row.dtype) for name, row in rows.items()}
            rows["text"] = RowShape((r,), np.int32)
            rows["segment"] = RowShape((r,), np.int32)
            rows["lengths"] = RowShape((k,), np.int32)
            rows["weight"] = RowShape((r,), np.float32)
        return {
            name: jax.ShapeDtypeStruct((self.batch, *row.shape), row.dtype)
            for name, row in rows.items()
        }

    @property
    def on_device(self) -> dict[str, tuple[str, Json]]:
        """The options that the compiled step reads. The others decide what is in a batch, or the
        shapes of its arrays (`shapes`)."""
        parts = {
            name: (type(field).__name__, field.compiled()) for name, field in self.fields.items()
        }
        return {name: part for name, part in parts.items() if part[1] is not None}

    def select(self, source: Source) -> Source:
        """The records that have what every field needs, where the source can tell. What may be
        masked is not needed.

        Raises ConfigError at `fields.NAME` where a field cannot be served.
        """
        required = self.required
        needs: list[tuple[str, ...]] = []
        for name, field in self.fields.items():
            try:
                needed = field.needs(source)
            except ConfigError as error:
                raise error.under(f"fields.{name}") from None
            if name in required:
                needs += needed
        return select(self._kept(source), needs)

    def _kept(self, source: Source) -> Source:
        """The records that `keep` keeps. Raises ConfigError at `keep`."""
        if self.keep is None:
            return source
        values = source.column(self.keep) if self.keep in source.columns else None
        known = ", ".join(source.columns)
        problem = f"{self.keep!r} is no column of integers that {source.name} knows of all records"
        fits = values is not None and values.ndim == 1 and values.dtype.kind in "iub"
        check(
            fits, "keep", f"{problem}{nearest(self.keep, list(source.columns))} (columns: {known})"
        )
        kept = np.flatnonzero(values > 0)
        check(len(kept) > 0, "keep", f"{self.keep!r} keeps no record of {source.name}")
        return source if len(kept) == len(source) else Selected(source, kept, f"keep={self.keep}")
