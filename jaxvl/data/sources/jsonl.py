"""JSON Lines: an object in every line, whose pictures are paths, data URIs or base64.

source = dict(name="jsonl", files="/data/captions.jsonl", images="/data/pictures",
columns=dict(image="file", text="caption"))
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from jaxvl.config import PathText, check
from jaxvl.data import text_files
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.file_patterns import expand_files
from jaxvl.data.sources.line_index import RecordFiles, TextTable, default_media_root
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.table import Found, choose_columns
from jaxvl.data.sources.values import NOT_UTF8, common_kind, kind_of, named

HEAD = 64  # bytes
LOOKED_AT = 100  # records whose values say what a column holds


@SOURCES.register("jsonl")
@dataclasses.dataclass(frozen=True)
class JsonLines:
    """See the module's text.

    Attributes:
      files: names with braces, globs or folders, local or remote; `::` joins several.
      images: folder that paths of pictures start from, and may not leave; None: that of the first
        file.
      columns: our name -> key, `name.part` for a part of an object; empty: see the source
        `parquet`.
      kinds: our name -> kind, where the values do not tell it.
    """

    files: PathText | tuple[PathText, ...]
    images: PathText | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)

    def open(self, log: Log = print) -> JsonLinesSource:
        """Raises ConfigError at one of its fields; DataError where a file is not there, or its
        first lines are no JSON."""
        files = expand_files(self.files, "files", ".jsonl")
        records = RecordFiles(files, split_lines, ["jsonl"], log)
        check(
            len(records) > 0,
            "files",
            f"{files[0]!r}{' and all others' if len(files) > 1 else ''} has no lines",
        )
        if text_files.decode(records.head(0, HEAD), "replace").lstrip().startswith("["):
            raise DataError(
                f"{files[0]}: begins with a list; write each of its elements as a line, as "
                f"`jq -c '.[]'` does"
            )
        chosen = choose_columns(
            _find_columns(records), self.columns, self.kinds, True, files[0], log
        )
        media = MediaFolder(self.images or default_media_root(files))
        return JsonLinesSource(records, chosen, media)


def split_lines(lines: Iterator[bytes], file: str) -> Iterator[int]:
    """Offsets of lines that are not blank, and the end of the last one."""
    at = 0
    end = 0
    for line in lines:
        if line.strip():
            yield at
            end = at + len(line)
        at += len(line)
    yield end


def parse(content: bytes, where: str) -> Mapping[str, object]:
    """The object of the first line. Raises BadRecord."""
    line = content.split(b"\n", 1)[0]  # blank lines may follow
    try:
        value = json.loads(text_files.decode(line))
    except UnicodeDecodeError as error:
        raise BadRecord(NOT_UTF8, f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord("record cannot be read", f"{where}: no JSON ({error})"[:500]) from None
    if not isinstance(value, dict):
        raise BadRecord(
            "record cannot be read", f"{where}: is of type {type(value).__name__}, not an object"
        )
    return value


def _find_columns(records: RecordFiles) -> dict[str, Found]:
    """Columns by the values of some records. Raises DataError where none of them is JSON."""
    kinds: dict[str, list[str | None]] = collections.defaultdict(list)
    types: dict[str, str] = {}
    problem = None
    for i in sorted(
        {
            *range(min(len(records), LOOKED_AT // 2)),
            *np.linspace(0, len(records) - 1, LOOKED_AT // 2).astype(int).tolist(),
        }
    ):
        try:
            record = parse(records.content(i), records.where(i))
        except BadRecord as error:
            problem = problem or error
            continue
        for name, value in flat(record):
            kinds[name].append(kind_of(value))
            types.setdefault(name, type(value).__name__)
    if not kinds:
        raise DataError(f"{problem}; no line that was looked at is a JSON object")
    return {name: Found(common_kind(of), types[name]) for name, of in kinds.items()}


def flat(record: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Values by dotted name."""
    for name, value in record.items():
        yield f"{before}{name}", value
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")


class JsonLinesSource(TextTable):
    """Lines of JSON.

    Args:
      records: the lines.
      chosen, media: see `TableSource`.
    """

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        record = parse(self._records.content(i), self.where(i))
        return {name: named(record, name) for name in theirs}
