"""Shards of the records that are left.

Tar shards are laid out as img2dataset's (its writer.py and logger.py): `{shard:05d}.tar`, members
`KEY.jpg` (the picture's bytes unchanged, under its own suffix), `KEY.txt`, `KEY.json`; KEY is the
shard in 5 digits and the place in 4; `{shard:05d}_stats.json`. Equal rows give equal bytes: times
are 0, keys of JSON are sorted.

ArrayRecord shards hold a msgpack map per record, column -> value; an array is `{dtype, shape,
data}`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module
from PIL import Image

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import ConfigError, check
from jaxvl.data.pictures import FORMATS
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.rows import Row, opened
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Source

WORK = "work"  # folder beside the shards, for what only a run needs
SUFFIXES = {"tar": ".tar", "array_record": ".array_record"}
OPTIONS = "group_size:1,zstd:3"  # of ArrayRecord: any record by itself
IN_JSON = ("int", "float", "class", "text", "texts")
KINDS_OF_TAR = (*IN_JSON, "image", "audio", "array")
# Pillow's names of formats whose usual suffix is another. A phone's picture of several frames,
# "MPO", is a JPEG.
PICTURES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
SOUNDS = ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"RIFF", "wav"))  # first bytes; others are MP3


def check_format(config: PrepareConfig, source: Source) -> None:
    """Raises ConfigError where the format cannot hold a column of the source."""
    if config.format != "tar":
        return
    for name, column in source.columns.items():
        fits = column.kind in KINDS_OF_TAR
        check(
            fits,
            "format",
            f"'tar' holds no {column.kind} (column {name!r}); must be 'array_record'",
        )


def shard_name(shard: int) -> str:
    return f"{shard:05d}"


def write_shard(
    group: tuple[int, Iterable[tuple[int, Row]]], config: str, folder: str
) -> Iterator[dict[str, Json]]:
    """Writes one shard and then its statistics, which say that it is whole; one that is there from
    an earlier run is kept.

    Yields:
      the statistics.

    Raises:
      DataError: a record could be read before and cannot be any more.
    """
    resolved, source = opened(config)
    shard, members = group
    rows = [row for _, row in sorted(members, key=lambda member: member[0])]
    place = paths.as_path(folder)
    name = shard_name(shard)
    digest = _digest(rows, resolved.format)
    file = place / f"{name}{SUFFIXES[resolved.format]}"
    stats = place / f"{name}_stats.json"
    kept = _kept(file, stats, digest)
    if kept is None:
        with tempfile.TemporaryDirectory(
            dir=None if paths.is_remote(place) else place / WORK
        ) as scratch:
            made = pathlib.Path(scratch) / file.name
            records = _records(resolved, source, rows)
            if resolved.format == "tar":
                _write_tar(made, name, rows, records, source.columns)
            else:
                _write_array_record(made, records)
            kept = _statistics(shard, rows, made, digest)
            if paths.is_remote(place):
                paths.upload(made, file)
            else:
                os.replace(made, file)
        paths.write_text(stats, json.dumps(kept, indent=1, sort_keys=True))
    yield kept


def _digest(rows: Sequence[Row], form: str) -> str:
    """Says what a shard holds, without reading a picture."""
    content = [
        form,
        *(
            [row.position, row.image.hex(), [[*place, text] for place, text in row.texts]]
            for row in rows
        ),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _kept(file: paths.Path, stats: paths.Path, digest: str) -> dict[str, Any] | None:
    """Statistics of a shard that an earlier run has finished; None where it must be written."""
    try:
        found = json.loads(paths.read_text(stats))
        fits = found["rows_sha256"] == digest and _size(file) == found["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return found if fits else None


def _size(file: paths.Path) -> int:
    stat = file.stat()
    return stat.length if paths.is_remote(file) else stat.st_size


def _statistics(shard: int, rows: Sequence[Row], made: pathlib.Path, digest: str) -> dict[str, Any]:
    """img2dataset's fields; the last four are ours. Times are 0, so that equal rows give equal
    files."""
    with open(made, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "count": len(rows),
        "successes": len(rows),
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 0.0,
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": {"success": len(rows)},
        "shard": shard,
        "bytes": made.stat().st_size,
        "sha256": sha256,
        "rows_sha256": digest,
    }


def _records(
    config: PrepareConfig, source: Source, rows: Sequence[Row]
) -> Iterator[dict[str, Json]]:
    """Whole records, with the texts that are left."""
    for row in rows:
        try:
            record = dict(source.read(row.position))
        except BadRecord as error:
            raise DataError(
                f"{source.name}: record {row.position} could be read before and cannot now "
                f"({error})"
            ) from None
        if hashlib.sha256(record.get(config.image, b"")).digest() != row.image:
            raise DataError(
                f"{source.name}: the picture of record {row.position} is another one than "
                f"before; run on data that stays"
            )
        yield _with_texts(record, config.texts, row)


def _with_texts(record: dict[str, Any], columns: Sequence[str], row: Row) -> dict[str, Any]:
    for column in columns:
        left = [text for (of, _), text in row.texts if of == column]
        if not left:
            record.pop(column, None)
        else:
            record[column] = left[0] if isinstance(record[column], str) else left
    return record


# --------------------------------------------------------------------------------------------------
# Tar


def suffix_of(data: bytes, kind: str) -> str:
    """Of an encoded picture or sound; `bin` where that is broken, which only a second picture of a
    record can be."""
    if kind == "audio":
        return next((suffix for start, suffix in SOUNDS if data.startswith(start)), "mp3")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return PICTURES.get(picture.format, picture.format.lower())
    except Exception:  # whatever Pillow raises
        return "bin"


def _write_tar(
    made: pathlib.Path,
    name: str,
    rows: Sequence[Row],
    records: Iterable[Mapping[str, Any]],
    columns: Mapping[str, Column],
) -> None:
    with tarfile.open(made, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, (row, record) in enumerate(zip(rows, records)):
            key = f"{name}{place:04d}"
            for suffix, data in _members(key, row, record, columns):
                about = tarfile.TarInfo(f"{key}.{suffix}")
                about.size = len(data)
                about.mode = 0o644
                tar.addfile(about, io.BytesIO(data))


def _members(
    key: str, row: Row, record: Mapping[str, Any], columns: Mapping[str, Column]
) -> Iterator[tuple[str, bytes]]:
    """(suffix, bytes) of the members of one record: picture, text, the rest.

    A second column of a kind has its name before the suffix: `KEY.mask.png`. A column that is
    called as one of img2dataset's fields is kept as `original_NAME`.
    """
    about = {
        "key": key,
        "status": "success",
        "width": row.width,
        "height": row.height,
        "sha256": row.image.hex(),
    }
    taken: set[str] = set()
    for name, value in record.items():
        kind = columns[name].kind
        if kind in IN_JSON:
            about[f"original_{name}" if name in about else name] = value
            continue
        data, suffix = (_npy(value), "npy") if kind == "array" else (value, suffix_of(value, kind))
        yield (f"{_plain(name)}.{suffix}" if kind in taken else suffix), data
        taken.add(kind)
    yield "txt", row.texts[0][1].encode("utf-8", "replace")
    classes = [value for name, value in record.items() if columns[name].kind == "class"]
    if classes:
        yield "cls", str(int(classes[0])).encode()
    yield (
        "json",
        json.dumps(about, sort_keys=True, ensure_ascii=False, default=_number).encode(
            "utf-8", "replace"
        ),
    )


def _plain(name: str) -> str:
    """A column's name as a part of a member's."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name).lower()


def _npy(value: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, value, allow_pickle=False)
    return out.getvalue()


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError("format", f"a value of type {type(value).__name__} cannot be kept in JSON")


# --------------------------------------------------------------------------------------------------
# ArrayRecord


def _write_array_record(made: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(made), OPTIONS)
    try:
        for record in records:
            writer.write(msgpack.packb(record, default=_packable, unicode_errors="surrogatepass"))
    finally:
        writer.close()


def _packable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
    raise TypeError(f"{type(value).__name__} cannot be kept")
