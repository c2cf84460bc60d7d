"""CSV and TSV files with a header line, by open_clip's defaults (tab, `filepath`, `title`).

open_clip names them by `--csv-separator`, `--csv-img-key` and `--csv-caption-key`.

    source = dict(name="csv", files="/data/cc3m.tsv", images="/data/cc3m")

Quoted fields may hold separators and line breaks. Where a header is written with a space after each
separator (`filepath, title`), fields lose the spaces that they begin with. Otherwise a text stays
as it is: "None", "null", "NA" and "nan" are captions like any other. A column whose texts are
lists, in JSON or as Python prints them, is of kind `texts`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

from jaxvl.config import ConfigError, PathText, check
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Kind, Log
from jaxvl.data.sources.file_patterns import expand_files
from jaxvl.data.sources.line_index import RecordFiles, TextTable, default_media_root
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.table import NAMES, PATH_NAMES, Chosen, Found, choose_columns
from jaxvl.data.sources.values import NOT_UTF8, list_in_text

LOOKED_AT = 100  # rows whose values say what a column holds
LONGEST_HEADER = 2**20  # bytes
SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}
_TEXTS = {*NAMES["text"], *PATH_NAMES}  # columns that hold texts, whatever the first ones look like

csv.field_size_limit(
    min(sys.maxsize, 2**31 - 1)
)  # the library's own limit is 128 KiB, of the whole process


@SOURCES.register("csv")
@dataclasses.dataclass(frozen=True)
class Delimited:
    """See the module's text.

    Attributes:
      files: names with braces, globs or folders, local or remote; `::` joins several. Their headers
        are equal.
      images: folder that paths of pictures start from, and may not leave; None: that of the first
        file.
      columns: our name -> name in the header; empty: see the source `parquet`.
      kinds: our name -> kind, where the values do not tell it.
      delimiter: one character between fields.
      quotes: whether a field may stand in double quotes; False: quotes are part of the text.
    """

    files: PathText | tuple[PathText, ...]
    images: PathText | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    delimiter: str = "\t"
    quotes: bool = True

    def __post_init__(self):
        ok = len(self.delimiter) == 1 and self.delimiter not in '"\r\n\0'
        check(ok, "delimiter", f"{self.delimiter!r} must be one character, as '\\t' or ','")

    def open(self, log: Log = print) -> DelimitedSource:
        """Raises ConfigError at one of its fields; DataError where a file is not there, or its
        quotes do not end."""
        files = expand_files(self.files, "files", ".tsv" if self.delimiter == "\t" else ".csv")
        layout = Layout(self.delimiter, self.quotes)
        records = RecordFiles(
            files, layout.split, ["csv", self.delimiter, self.quotes, "spaces"], log
        )
        layout = layout.of_header(layout.header(records.head(0, LONGEST_HEADER), files[0]))
        header = self._header(records, layout)
        check(
            len(records) > 0,
            "files",
            f"{files[0]!r}{' and all others' if len(files) > 1 else ''} has no rows below its "
            f"header",
        )
        found = _find_columns(records, header, layout)
        chosen = choose_columns(found, self.columns, self.kinds, True, files[0], log)
        media = MediaFolder(self.images or default_media_root(files))
        return DelimitedSource(records, header, layout, chosen, media)

    def _header(self, records: RecordFiles, layout: Layout) -> list[str]:
        """Names of the columns, equal in all files."""
        first: list[str] = []
        for number, file in enumerate(records.files):
            header = layout.header(records.head(number, LONGEST_HEADER), file)
            check(len(header) > 0, "files", f"{file!r} is empty; must begin with a header line")
            if number and header != first:
                raise DataError(
                    f"{file}: has the columns {', '.join(header)}, but {records.files[0]} has "
                    f"{', '.join(first)}; write them alike"
                )
            first = header
        wanted = set(self.columns.values()) - set(first)
        if len(first) == 1 and (wanted or not self.columns):
            self._refuse_separator(first[0], records.files[0])
        twice = sorted({name for name in first if first.count(name) > 1})
        check(
            not twice,
            "files",
            f"{records.files[0]!r} has several columns {twice[0]!r}" if twice else "",
        )
        return first

    def _refuse_separator(self, header: str, file: str) -> None:
        """Raises ConfigError where the only column's name holds another separator."""
        for separator, name in SEPARATORS.items():
            if separator in header and separator != self.delimiter:
                used = SEPARATORS.get(self.delimiter, repr(self.delimiter))
                raise ConfigError(
                    "delimiter",
                    f"{self.delimiter!r} ({used}) finds one column, {header!r}, in {file}, "
                    f"which is separated by {name}: delimiter={separator!r}",
                )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows are written.

    Attributes:
      delimiter, quotes: see `Delimited`.
      spaces: whether a space after a delimiter is part of it.
    """

    delimiter: str
    quotes: bool
    spaces: bool = False

    def rows(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Raises csv.Error."""
        quoting = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        return csv.reader(
            lines, delimiter=self.delimiter, quoting=quoting, skipinitialspace=self.spaces
        )

    def rows_of_file(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """All rows, whose header says whether there are spaces. Raises csv.Error."""
        header: list[str] = []
        for header in self.rows(lines):
            yield header
            if header:
                break
        yield from self.of_header(header).rows(lines)

    def of_header(self, header: Sequence[str]) -> Layout:
        """The layout of a file with a header."""
        spaces = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
        return dataclasses.replace(self, spaces=spaces)

    def header(self, content: bytes, file: str) -> list[str]:
        """Raises DataError."""
        try:
            text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
            return next(self.rows(io.StringIO(text, newline="")), [])
        except csv.Error as error:
            raise DataError(f"{file}: its header cannot be read ({error})") from None

    def split(self, lines: Iterator[bytes], file: str) -> Iterator[int]:
        """Offsets of rows below the header, and the end of the last one. Raises DataError where
        quotes do not end."""
        at = 0
        start = 0
        header = True
        pulled: list[bytes] = []  # lines of the row that is being read

        def texts() -> Iterator[str]:
            nonlocal at
            for line in lines:
                pulled.append(line)
                at += len(line)
                yield line.decode("utf-8", "surrogateescape")

        last: list[bytes] = []
        try:
            for row in self.rows_of_file(texts()):
                last = list(pulled)
                end = at
                pulled.clear()
                if row and not header:
                    yield start
                header = header and not row
                start = end
        except csv.Error as error:
            raise DataError(
                f"{file}: after byte {start}: {error}; is it separated by {self.delimiter!r}?"
            ) from None
        if self.quotes and len(last) > 1 and b"".join(last).count(b'"') % 2:
            opened = at - len(b"".join(last))
            raise DataError(
                f"{file}: a quote that opens after byte {opened} is never closed; if quotes "
                f"are part of the texts, set quotes=False"
            )
        yield at

    def parse(self, content: bytes, where: str) -> list[str]:
        """Fields of one row. Raises BadRecord."""
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(NOT_UTF8, f"{where}: {error}") from None
        try:
            return next(self.rows(io.StringIO(text, newline="")), [])
        except csv.Error as error:
            raise BadRecord("record cannot be read", f"{where}: {error}") from None


def _find_columns(records: RecordFiles, header: Sequence[str], layout: Layout) -> dict[str, Found]:
    """Columns by the values of the first rows."""
    values: dict[str, list[str]] = {name: [] for name in header}
    for i in range(min(len(records), LOOKED_AT)):
        try:
            row = layout.parse(records.content(i), records.where(i))
        except BadRecord:
            continue
        for name, value in zip(header, row):
            values[name].append(value)
    found = {}
    for name in header:
        kind = kind_of_texts(name, [value for value in values[name] if value.strip()])
        found[name] = Found(
            kind,
            "texts of numbers" if kind in ("int", "float") else "texts",
            kind in ("int", "float"),
        )
    return found


def kind_of_texts(name: str, values: Sequence[str]) -> Kind:
    """What texts hold; a name that is a caption's says more than numbers in the first of them."""
    if values and all(list_in_text(value) for value in values):
        return "texts"
    if name.lower() in _TEXTS or not values:
        return "text"
    kinds: tuple[tuple[Kind, type], ...] = (("int", int), ("float", float))
    for kind, of in kinds:
        try:
            for value in values:
                of(value)
            return kind
        except ValueError:
            continue
    return "text"


class DelimitedSource(TextTable):
    """Rows of CSV or TSV files. A shard is a file.

    Args:
      records: the rows.
      header: names of the columns.
      layout: how rows are written.
      chosen, media: see `TableSource`.
    """

    def __init__(
        self, records: RecordFiles, header: Sequence[str], layout: Layout, chosen: Mapping[str, Chosen], media: MediaFolder
    ):  # fmt: skip
        super().__init__(records, chosen, media)
        self._layout = layout
        self._places = {name: place for place, name in enumerate(header)}

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        fields = self._layout.parse(self._records.content(i), self.where(i))
        if len(fields) != len(self._places):
            raise BadRecord(
                "row has another number of fields",
                f"{self.where(i)}: {len(fields)} fields, {len(self._places)} columns",
            )
        return {name: self._field(name, fields[self._places[name]]) for name in theirs}

    def _field(self, name: str, text: str) -> str | None:
        """A number may be left out; a text may be empty."""
        numbers = any(
            each.theirs == name and each.column.kind in ("int", "float", "class")
            for each in self.chosen.values()
        )
        return None if numbers and not text.strip() else text
