"""Records as the rules see them. Pictures are read here, and again where they are written."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import msgpack
from PIL import Image

from jaxvl import paths
from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.pictures import open_picture
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Record, Source

NO_CAPTION = "no caption"
NO_IMAGE = "no image"
# pixels; a perceptual hash needs no more, and JPEGs are decoded faster at a part of their size
HASHED_SIDE = 64
WHITE = (1.0, 1.0, 1.0)
Place = tuple[str, int]  # column of a text; number in a list of texts, -1 in a column of one


@dataclasses.dataclass(frozen=True)
class Row:
    """One record.

    Attributes:
      position: number in the source.
      image: SHA-256 of the encoded picture.
      width, height: of the picture, in pixels.
      look: perceptual hash, 64 bits; None where no rule asks for it.
      uid: DataComp's, 32 hex digits, or None.
      texts: (place, text) of every text that is left.
    """

    position: int
    image: bytes
    width: int
    height: int
    look: int | None
    uid: str | None
    texts: tuple[tuple[Place, str], ...]

    def without(self, places: frozenset[Place]) -> Row:
        """The row with fewer texts."""
        left = tuple((place, text) for place, text in self.texts if place not in places)
        return dataclasses.replace(self, texts=left)


@dataclasses.dataclass(frozen=True)
class Bad:
    """A record that cannot be used."""

    position: int
    cause: str
    detail: str


@functools.lru_cache(maxsize=16)
def opened(config: str) -> tuple[PrepareConfig, Source]:
    """The config of that JSON text and its source, opened once in a process."""
    resolved = resolve(PrepareConfig, json.loads(config))
    return resolved, resolved.source.open(_silent)


@functools.lru_cache(maxsize=16)
def opened_test(config: str, name: str) -> Source:
    return resolve(PrepareConfig, json.loads(config)).test_images[name].open(_silent)


def _silent(text: str) -> None:
    """Workers are many; what sources say while they open is printed where the command runs."""


def as_json(config: PrepareConfig) -> str:
    """A text that workers rebuild the config from, on any machine."""
    return json.dumps(to_dict(config), sort_keys=True)


def check_columns(config: PrepareConfig, source: Source) -> None:
    """Raises ConfigError where the source lacks a column that the config names, or has it of
    another kind."""
    wanted = {config.image: ("image", ("image",))}
    wanted |= {name: ("texts", ("text", "texts")) for name in config.texts}
    if config.rules.uid_subset is not None:
        wanted[config.uid] = ("uid", ("text",))
    for name, (key, kinds) in wanted.items():
        there = ", ".join(f"{column} ({about.kind})" for column, about in source.columns.items())
        if name not in source.columns:
            raise ConfigError(key, f"{name!r} is no column of {source.name} (there are: {there})")
        kind = source.columns[name].kind
        if kind not in kinds:
            raise ConfigError(
                key,
                f"{name!r} is of kind {kind}; must be {' or '.join(kinds)} (there are: {there})",
            )


def read_range(config: str, folder: str, start: int, stop: int) -> Iterator[Row | Bad]:
    """Rows of the records start … stop - 1 of the source; they are kept in `folder`, for a run that
    is started again.

    Raises:
      DataError: the source cannot be read any more.
    """
    file = paths.as_path(folder) / f"rows-{start:012d}-{stop:012d}.msgpack"
    kept = _load(file)
    if kept is not None:
        yield from kept
        return
    resolved, source = opened(config)
    out = [read_row(resolved, source, i) for i in range(start, stop)]
    _save(file, out)
    yield from out


def read_row(config: PrepareConfig, source: Source, position: int) -> Row | Bad:
    columns = [config.image, *config.texts]
    if config.rules.uid_subset is not None:
        columns.append(config.uid)
    try:
        record = source.read(position, columns)
        return _row(config, record, position)
    except BadRecord as error:
        detail = str(error).removeprefix(f"{error.cause}: ")
        return Bad(position, error.cause, detail)


def _row(config: PrepareConfig, record: Record, position: int) -> Row:
    texts = placed_texts(record, config.texts)
    if not texts:
        raise BadRecord(NO_CAPTION, f"record {position} of {', '.join(config.texts)}")
    data = record.get(config.image)
    if data is None:
        raise BadRecord(NO_IMAGE, f"record {position}")
    width, height, look = look_at(
        data, hashed=bool(config.test_images) and config.rules.test_distance is not None
    )
    uid = record.get(config.uid) if config.rules.uid_subset is not None else None
    return Row(position, hashlib.sha256(data).digest(), width, height, look, uid, texts)


def placed_texts(record: Record, columns: tuple[str, ...]) -> tuple[tuple[Place, str], ...]:
    """(place, text) of every text that holds more than spaces."""
    found: list[tuple[Place, str]] = []
    for column in columns:
        value = record.get(column)
        if isinstance(value, str):
            found.append(((column, -1), value))
        elif value is not None:
            found += [((column, number), text) for number, text in enumerate(value)]
    return tuple((place, text) for place, text in found if text.strip())


def look_at(data: bytes, hashed: bool) -> tuple[int, int, int | None]:
    """(width, height, perceptual hash or None) of an encoded picture, which is decoded whole to see
    that it is one.

    Raises:
      BadRecord: it cannot be decoded.
    """
    picture = open_picture(data, HASHED_SIDE, background=WHITE)
    with Image.open(io.BytesIO(data)) as head:  # `picture` may be smaller than the file's
        width, height = head.size
    return width, height, perceptual_hash(picture) if hashed else None


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits: signs of the low frequencies of the grey picture (pHash)."""
    import imagehash

    bits = imagehash.phash(picture).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _save(file: paths.Path, rows: list[Row | Bad]) -> None:
    packed = [_packed(row) for row in rows]
    paths.write_bytes(file, msgpack.packb(packed))


def _packed(row: Row | Bad) -> list[Any]:
    if isinstance(row, Bad):
        return [row.position, row.cause, row.detail]
    texts = [
        [column, number, text.encode("utf-8", "surrogatepass")]
        for (column, number), text in row.texts
    ]
    look = None if row.look is None else row.look.to_bytes(8, "big")
    return [row.position, row.image, row.width, row.height, look, row.uid, texts]


def _load(file: paths.Path) -> list[Row | Bad] | None:
    """Rows that an earlier run has kept; None where there are none."""
    try:
        packed = msgpack.unpackb(paths.read_bytes(file))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete it") from None
    return [_unpacked(values) for values in packed]


def _unpacked(values: list[Any]) -> Row | Bad:
    if len(values) == 3:
        return Bad(*values)
    position, image, width, height, look, uid, texts = values
    placed = tuple(
        ((column, number), text.decode("utf-8", "surrogatepass")) for column, number, text in texts
    )
    return Row(
        position,
        image,
        width,
        height,
        None if look is None else int.from_bytes(look, "big"),
        uid,
        placed,
    )
