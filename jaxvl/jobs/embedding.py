"""The rows that jobs work on: embeddings of every record of a source, or a column of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxvl.config import check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.data.sources.selected import Selected
from jaxvl.evals.columns import PICTURES, Columns, all_texts, check_column, check_texts, listed
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import check_tokenizer
from jaxvl.jobs.base import Job

BLOCK = 32_768  # records whose rows are in memory at a time, of jobs that need no more


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingJob(Job):
    """A job on one vector per record.

    Attributes:
      of: what the vector is: the embedding of the picture, of the first text, or both after each
        other ("pair"), scaled to length 1.
      image: column of pictures.
      text: column of texts, or several.
      features: column of arrays that is taken instead, as a table of `cache_features` has it.
    """

    of: Literal["image", "text", "pair"] = "image"
    image: str = "image"
    text: Columns = "text"
    features: str | None = None

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        if self.features is not None:
            check_column(source, self.features, ("array",), "features")
            return
        encoders.check_embeds()
        if self.of != "text":
            check_column(source, self.image, PICTURES, "image")
        if self.of != "image":
            check_tokenizer(encoders)
            check_texts(source, self.text, "text")

    def rows(self, encoders: Encoders, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Rows float32 [m, D] of the records that have them, and their numbers int64 [m].

        Raises DataError where none has.
        """
        if self.features is not None:
            return _features(source, self.features)
        parts = []
        if self.of != "text":
            parts.append(image_rows(encoders, source, self.image))
        if self.of != "image":
            parts.append(text_rows(encoders, source, self.text))
        return joined(source, parts)


def joined(
    source: Source, parts: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the records that are in all parts, after each other and of length 1 together, and
    their numbers."""
    found = np.flatnonzero(np.logical_and.reduce([present for _, present in parts]))
    if not len(found):
        raise DataError(f"{source.name}: no record has what the job embeds")
    if len(parts) == 1:
        return parts[0][0][found], found
    rows = np.concatenate([rows[found] for rows, _ in parts], axis=1)
    return rows / np.sqrt(np.float32(len(parts))), found


def _features(source: Source, column: str) -> tuple[np.ndarray, np.ndarray]:
    values = known_column(source, column, "features")
    present = source.present(column)
    found = np.arange(len(source)) if present is None else np.flatnonzero(present)
    if not len(found):
        raise DataError(f"{source.name}: no record has {column!r}")
    return np.asarray(values[found], np.float32).reshape(len(found), -1), found


def known_column(source: Source, column: str, field: str) -> np.ndarray:
    """The values of a column of all records. Raises ConfigError at `field` where they are not
    known before the records are read."""
    values = source.column(column)
    problem = f"{column!r} of {source.name} can only be read record by record"
    check(values is not None, field, f"{problem}; must be of a table, or known of all records")
    return values


def known_classes(source: Source, column: str, field: str) -> np.ndarray:
    """Class of every record, int64 [n], -1 where it has none. Raises ConfigError as
    `known_column`."""
    values = np.asarray(known_column(source, column, field), np.int64)
    present = source.present(column)
    return values if present is None else np.where(present, values, -1)


def image_rows(encoders: Encoders, source: Source, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows float32 [n, D] of the pictures of all records, and which there are, bool [n]."""
    encoded = encoders.images(source, column=column)
    return spread(encoded.rows, encoded.index, len(source))


def text_rows(
    encoders: Encoders, source: Source, columns: Columns, output: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows float32 [n, D] of the first text of all records, and which there are, bool [n].
    `output`: as of `Encoders.texts`."""
    texts = all_texts(source, listed(columns))
    found = [i for i, of in enumerate(texts) if of]
    given = [texts[i][0] for i in found] or [""]
    rows = encoders.texts(given, output=output)[: len(found)]
    return spread(rows, np.array(found, np.int64), len(source))


def spread(rows: np.ndarray, index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [m, …] at `index` among n, zeros between them, and which are there, bool [n]."""
    out = np.zeros((n, *rows.shape[1:]), rows.dtype)
    out[index] = rows
    present = np.zeros(n, bool)
    present[index] = True
    return out, present


def blocks_of(source: Source, block: int = BLOCK) -> Iterator[tuple[int, Source]]:
    """The records in blocks: the number of the first one, and the block as a source."""
    for start in range(0, len(source), block):
        end = min(start + block, len(source))
        yield start, Selected(source, np.arange(start, end), f"{start}:{end}")
