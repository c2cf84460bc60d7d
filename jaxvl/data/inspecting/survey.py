"""Figures of a sample of records. The sample is drawn by seed; a large set is never read whole."""

from __future__ import annotations

import collections
import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxvl.aliases import ColumnValue
from jaxvl.data.inspecting.images import ImageFigures, Seen, image_figures, look
from jaxvl.data.inspecting.texts import TextFigures, only_name, text_figures
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column, Source

THUMBNAIL = 160  # pixels
LONGEST_SHOWN = 300  # characters of a text below its picture
LONGEST_NAME = 60  # characters of a key or an address in a table
WITHOUT_REPLACEMENT = (
    4  # of a set this many times the sample or more, numbers are drawn until enough differ
)


@dataclasses.dataclass(frozen=True)
class ColumnFigures:
    """What is known of a column.

    Attributes:
      kind: see Column.
      present: share of the sampled records that have it.
      bytes: mean size of a value, for kinds with one.
      values: for numbers and classes: least, median, greatest, and how many differ; for arrays: the
        shapes; for texts that only name a record: how many differ, and one of them.
      text, image: figures of texts that say something and of pictures, where there are any.
    """

    kind: str
    present: float
    bytes: float | None = None
    values: str | None = None
    text: TextFigures | None = None
    image: ImageFigures | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """A record on the contact sheet.

    Attributes:
      position: its number.
      picture: a small JPEG.
      fault: why there is none, where the record has one that cannot be decoded.
      texts: column -> text, of texts and numbers.
    """

    position: int
    picture: bytes | None
    fault: str
    texts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a sample tells.

    Attributes:
      name, fingerprint: of the source.
      records: of the source.
      shards: how many; fewest, median and most records of one.
      sampled: records that were looked at.
      columns: name -> figures.
      bad: cause -> (records, the first one's detail).
      read_ms, decode_ms: milliseconds a record: (mean, median, 95th percentile); of decoding: a
        picture.
      bytes: mean size of a record's encoded values.
      examples: for the contact sheet.
    """

    name: str
    fingerprint: str
    records: int
    shards: tuple[int, int, int, int]
    sampled: int
    columns: dict[str, ColumnFigures]
    bad: dict[str, tuple[int, str]]
    read_ms: tuple[float, float, float]
    decode_ms: tuple[float, float, float]
    bytes: float
    examples: list[Example]

    @property
    def captions(self) -> list[str]:
        """Columns of texts that say something of a record; others name it, as keys and addresses
        do."""
        return [name for name, column in self.columns.items() if column.text is not None]


def draw(records: int, sample: int, seed: int) -> list[int]:
    """At most `sample` different record numbers, ascending; memory does not grow with `records`."""
    if sample >= records:
        return list(range(records))
    rng = np.random.default_rng(seed)
    if records < WITHOUT_REPLACEMENT * sample:
        return sorted(rng.permutation(records)[:sample].tolist())
    drawn: dict[int, None] = {}
    while len(drawn) < sample:
        drawn.update(dict.fromkeys(rng.integers(0, records, sample).tolist()))
    return sorted(list(drawn)[:sample])


class _Tally:
    """What the records of a sample add up to."""

    def __init__(self, columns: dict[str, Column]):
        self.columns = columns
        self.present: collections.Counter[str] = collections.Counter()
        self.sizes: dict[str, list[int]] = collections.defaultdict(list)
        self.values: dict[str, list[Any]] = collections.defaultdict(list)
        self.texts: dict[str, list[str]] = collections.defaultdict(list)
        self.seen: dict[str, list[Seen]] = collections.defaultdict(list)
        self.bad: dict[str, tuple[int, str]] = {}
        self.read: list[float] = []
        self.decode: list[float] = []

    def fault(self, error: BadRecord, where: str = "") -> None:
        records, detail = self.bad.get(
            error.cause, (0, where + str(error).removeprefix(f"{error.cause}: "))
        )
        self.bad[error.cause] = records + 1, detail

    def add(self, name: str, value: ColumnValue) -> Image.Image | None:
        """Adds a value; returns the picture of one that is. Raises BadRecord for a picture that
        cannot be decoded."""
        self.present[name] += 1
        kind = self.columns[name].kind
        self.sizes[name].append(_size(value))
        if kind in ("text", "texts"):
            self.texts[name] += [value] if isinstance(value, str) else list(value)
        elif kind in ("class", "int", "float"):
            self.values[name].append(value)
        elif kind == "array":
            self.values[name].append(f"{value.dtype} {list(value.shape)}")
        elif kind in ("image", "frames"):
            return self._look(name, value if kind == "image" else value[0])
        return None

    def _look(self, name: str, data: bytes) -> Image.Image:
        began = time.perf_counter()
        seen, picture = look(data)
        self.decode.append(time.perf_counter() - began)
        self.seen[name].append(seen)
        return picture

    def figures(self, name: str, sampled: int) -> ColumnFigures:
        kind = self.columns[name].kind
        texts = self.texts[name]
        seen = self.seen[name]
        values = self.values[name]
        sized = self.sizes[name] if kind not in ("class", "int", "float") else []
        summary = _summary(kind, values) if values else None
        naming = bool(texts) and only_name(name, texts)
        if naming:
            summary = f"{len(set(texts)):,} different, as {texts[0][:LONGEST_NAME]}"
        return ColumnFigures(
            kind=kind,
            present=self.present[name] / max(sampled, 1),
            bytes=float(np.mean(sized)) if sized else None,
            values=summary,
            text=text_figures(texts) if texts and not naming else None,
            image=image_figures(seen) if seen else None,
        )


def _size(value: ColumnValue) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(_size(part) for part in value) if isinstance(value, (list, tuple)) else 8


def _summary(kind: str, values: Sequence[Any]) -> str:
    different = len(set(values))
    if kind == "array":
        return ", ".join(
            f"{shape} ({n})" for shape, n in collections.Counter(values).most_common(3)
        )
    return (
        f"{min(values):g} … {float(np.median(values)):g} … {max(values):g}, {different:,} different"
    )


def survey(source: Source, sample: int, seed: int, sheet: int) -> Survey:
    """Reads a sample of a source.

    Args:
      sheet: records for the contact sheet.

    Raises:
      DataError: the source cannot be read any more.
    """
    positions = draw(len(source), sample, seed)
    shown = set(np.random.default_rng(seed + 1).permutation(positions)[:sheet].tolist())
    tally = _Tally(dict(source.columns))
    examples = []
    for position, record in _records(source, positions, tally):
        pictures = []
        fault = ""
        for name, value in record.items():
            try:
                picture = tally.add(name, value)
            except BadRecord as error:
                tally.fault(error, f"record {position}: ")
                fault = error.cause
                continue
            if picture is not None:
                pictures.append(picture)
        if position in shown:
            examples.append(_example(position, record, pictures, fault, source))
    sizes = source.shards()
    shards = (
        (len(sizes), int(sizes.min()), int(np.median(sizes)), int(sizes.max()))
        if len(sizes)
        else (0, 0, 0, 0)
    )
    return Survey(
        name=source.name,
        fingerprint=source.fingerprint,
        records=len(source),
        shards=shards,
        sampled=len(positions),
        columns={name: tally.figures(name, len(positions)) for name in source.columns},
        bad=dict(sorted(tally.bad.items(), key=lambda item: -item[1][0])),
        read_ms=_milliseconds(tally.read),
        decode_ms=_milliseconds(tally.decode),
        bytes=sum(sum(sizes) for sizes in tally.sizes.values()) / max(len(positions), 1),
        examples=examples,
    )


def _records(source: Source, positions: Sequence[int], tally: _Tally) -> Iterator[tuple[int, Any]]:
    for position in positions:
        began = time.perf_counter()
        try:
            record = source.read(position)
        except BadRecord as error:
            tally.fault(error)
            continue
        finally:
            tally.read.append(time.perf_counter() - began)
        yield position, record


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float, float]:
    if not seconds:
        return 0.0, 0.0, 0.0
    median, high = np.percentile(seconds, (50, 95))
    return 1000 * float(np.mean(seconds)), 1000 * float(median), 1000 * float(high)


def _example(
    position: int, record: Any, pictures: Sequence[Image.Image], fault: str, source: Source
) -> Example:
    data = None
    if pictures:
        small = pictures[0].copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        data = out.getvalue()
    texts = {}
    for name, value in record.items():
        kind = source.columns[name].kind
        if kind == "text":
            texts[name] = value[:LONGEST_SHOWN]
        elif kind == "texts":
            texts[name] = " | ".join(value)[:LONGEST_SHOWN]
        elif kind in ("class", "int", "float"):
            texts[name] = str(value)
    return Example(position, data, fault, texts)
