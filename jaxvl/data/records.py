"""Records: one image with its captions, as msgpack in ArrayRecord files.

A record is a dict: `key` (text, unique in its corpus), `image` (an encoded picture: PNG, JPEG, WebP
bytes), `label` (int, equal for pictures of the same thing), `style` (text), `captions` ({locale:
[name, [keyword, …]]}). Some have `audio` ({kind: {locale: FLAC bytes, 16 kHz mono}}; kinds are
`speech`, `sound` …) or `frames` ([an encoded picture, …]).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import msgpack
import numpy as np
from array_record.python import array_record_module

# Not Grain's class around it: its import puts another `__import__` into the place of Python's for a
# while (etils' `lazy_imports`), and a thread that traces a step then gets modules for functions.
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxvl.aliases import ColumnValue

StoredRecord = dict[str, ColumnValue]
FIELDS = ("key", "image", "label", "style", "captions")


class DataError(RuntimeError):
    """Data that a run cannot go on with; the message names the file and what to do."""


class BadRecord(ValueError):
    """One record that cannot be used; it is skipped and counted by `cause`."""

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self._detail = detail

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        return type(self), (
            self.cause,
            self._detail,
        )  # of itself, pickle would keep the message alone


def causes(skipped: Mapping[str, int]) -> str:
    """Cause -> records, as a text: the commonest first."""
    return ", ".join(
        f"{cause}: {n}" for cause, n in sorted(skipped.items(), key=lambda item: -item[1])
    )


def pack(record: StoredRecord) -> bytes:
    return msgpack.packb(record, use_bin_type=True)


def unpack(data: bytes) -> StoredRecord:
    """Raises BadRecord where `data` is not a whole record."""
    try:
        record = msgpack.unpackb(data, raw=False)
    except Exception as error:  # msgpack raises many types for one broken message
        raise BadRecord("record cannot be read", f"{type(error).__name__}: {error}") from None
    missing = [f for f in FIELDS if f not in record] if isinstance(record, dict) else FIELDS
    if missing:
        raise BadRecord("record is incomplete", f"no {missing[0]!r}")
    return record


def write_records(path: pathlib.Path, records: Iterable[StoredRecord]) -> int:
    """Writes an ArrayRecord file for random access; returns the number of records."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:3")
    n = 0
    try:
        for record in records:
            writer.write(pack(record))
            n += 1
    finally:
        writer.close()
    return n


class RecordSource(Sequence):
    """Random access to some of the records of an ArrayRecord file; every `[i]` reads anew.

    Args:
      path: the file.
      index: int [n], positions of the records in the file.

    Raises:
      DataError: the file cannot be opened (it was cut short, say).
    """

    def __init__(self, path: pathlib.Path, index: np.ndarray):
        self.path = pathlib.Path(path)
        self.index = np.asarray(index)
        try:
            self._file = ArrayRecordDataSource(str(path))
            size = len(self._file)
        except Exception as error:
            raise DataError(
                f"{path}: not a readable ArrayRecord file ({type(error).__name__}: {error}); "
                f"delete its folder to have it built anew"
            ) from None
        if len(self.index) and self.index.max() >= size:
            raise DataError(
                f"{path}: holds {size} records, but record {self.index.max()} is asked for; "
                f"delete its folder to have it built anew"
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> StoredRecord:
        """Raises BadRecord."""
        try:
            data = self._file[int(self.index[i])]
        except IndexError:
            raise
        except Exception as error:
            raise BadRecord("record cannot be read", f"{type(error).__name__}: {error}") from None
        return unpack(data)
