"""Every kind of source, each over the twelve records of `twelve_records.py` or some of them: a text
tells which record it is."""

from __future__ import annotations

import json
import pathlib
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twelve_records import RECORDS, WRITERS, write_examples, write_jsonl, write_parquet, write_tars

from jaxvl.data.fields.numbers import hash_of
from jaxvl.data.sources.energon import Energon
from jaxvl.data.sources.joined import Joined
from jaxvl.data.sources.jsonl import JsonLines
from jaxvl.data.sources.mixture import MixtureConfig, PartConfig
from jaxvl.data.sources.where import Where

IDS = [
    hash_of(record["text"]) for record in RECORDS
]  # what a field `group` over the texts gives each record
ALL = tuple(range(len(RECORDS)))


class Written(NamedTuple):
    """A source's config, and numbers in `RECORDS` of the records that it has, in its order."""

    config: Any
    records: tuple[int, ...] = ALL


def own_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    (folder / name).mkdir()
    return folder / name


def energon(folder: pathlib.Path) -> Written:
    """The tars as `energon prepare` has them, without one sample that the split leaves out."""
    write_tars(folder)
    meta = own_folder(folder, ".nv-meta")
    meta.joinpath("split.yaml").write_text(
        "split_parts:\n  train:\n  - '{00000..00001}.tar'\nexclude:\n- 00000.tar/000000003\n"
    )
    meta.joinpath("dataset.yaml").write_text(
        "field_map:\n  image: png\n  text: txt\n  class_label: cls\n"
    )
    return Written(Energon(str(folder)), tuple(i for i in ALL if i != 3))


def of_classes(config: Any, classes: Sequence[int]) -> Written:
    """The records of some classes; four have each."""
    kept = tuple(i for i in ALL if RECORDS[i]["class_label"] in classes)
    return Written(Where(config, column="class_label", among=tuple(classes)), kept)


def where(folder: pathlib.Path) -> Written:
    return of_classes(write_parquet(folder), (0, 2))


def joined(folder: pathlib.Path) -> Written:
    """The records that a file of ranks has, by their texts; it lacks two of them."""
    ranked = tuple(i for i in ALL if i % 6 != 1)
    lines = [json.dumps({"text": RECORDS[i]["text"], "rank": i}) for i in reversed(ranked)]
    (folder / "ranks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Written(
        Joined(write_jsonl(folder), JsonLines(str(folder / "ranks.jsonl")), key="text"), ranked
    )


def mixture(folder: pathlib.Path, weights: Sequence[float | None] = (None, None, None)) -> Written:
    """Each class in another format."""
    writers = (write_tars, write_examples, write_parquet)
    parts = []
    for label, (writer, weight) in enumerate(zip(writers, weights)):
        part, _ = of_classes(writer(own_folder(folder, writer.__name__)), (label,))
        parts.append(PartConfig(part, weight, RECORDS[4 * label]["text"]))
    return Written(MixtureConfig(tuple(parts)))


def _plain(writer: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], Written]:
    return lambda folder: Written(writer(folder))


EVERY = {name: _plain(writer) for name, writer in WRITERS.items()}
EVERY |= {"energon": energon, "where": where, "joined": joined, "mixture": mixture}


def assert_epochs(ids: Sequence[int], records: Sequence[int]) -> None:
    """Every epoch has every record once; what is left of the last has none twice."""
    assert len(set(records)) == len(records)
    for first in range(0, len(ids), len(records)):
        epoch = list(ids[first : first + len(records)])
        assert len(set(epoch)) == len(epoch)
        assert len(epoch) < len(records) or sorted(epoch) == sorted(records)


def break_picture(file: pathlib.Path, name: str) -> None:
    """Puts as many zero bytes in place of a member of a tar."""
    with tarfile.open(file) as tar:
        member = tar.getmember(name)
    content = bytearray(file.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    file.write_bytes(content)
    with tarfile.open(file) as tar:
        assert tar.extractfile(name).read() == bytes(member.size)
