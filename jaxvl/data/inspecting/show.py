"""A survey as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from jaxvl.data.inspecting.images import ALIGN_ASPECT, ALIGN_SIDE, ImageFigures
from jaxvl.data.inspecting.sheet import printable
from jaxvl.data.inspecting.survey import ColumnFigures, Survey
from jaxvl.data.inspecting.texts import TextFigures

MOST_SCRIPTS = 6


def show(found: Survey, console: Console) -> None:
    records, sampled = found.records, found.sampled
    console.print(f"[bold]{escape(printable(found.name))}[/]", soft_wrap=True)
    shards, fewest, median, most = found.shards
    console.print(f"{records:,} records in {shards:,} shards of {fewest:,} to {most:,} (median {median:,}); {sampled:,} were looked at")
    size = found.bytes * records
    console.print(f"{_bytes(found.bytes)} a record, {_bytes(size)} in all by this sample; fingerprint {escape(found.fingerprint[:16])}")
    console.print(_columns(found))
    for table in _details(found):
        console.print(table)
    read, decode = found.read_ms, found.decode_ms
    console.print(
        f"read {read[0]:.2f} ms a record (95 %: {read[1]:.2f}), decode {decode[0]:.2f} ms a picture (95 %: {decode[1]:.2f}), on one core"
    )


def _columns(found: Survey) -> Table:
    table = Table("column", "kind", title="columns")
    for title in ("present", "mean size"):
        table.add_column(title, justify="right")
    table.add_column("values")
    for name, column in found.columns.items():
        size = "" if column.bytes is None else _bytes(column.bytes)
        table.add_row(escape(name), column.kind, f"{column.present:.1%}", size, escape(column.values or _summary(column)))
    return table


def _summary(column: ColumnFigures) -> str:
    if column.text is not None:
        return f"{column.text.words[2]:.0f} words, {column.text.duplicates:.1%} repeated"
    if column.image is not None:
        return f"{column.image.width[2]:.0f} x {column.image.height[2]:.0f} pixels, {', '.join(column.image.formats)}"
    return ""


def _details(found: Survey) -> Iterator[RenderableType]:
    for name, column in found.columns.items():
        if column.text is not None:
            yield _texts(name, column.text)
        if column.image is not None:
            yield _images(name, column.image)
    if found.bad:
        yield _bad(found)


def _percentiles(title: str) -> Table:
    table = Table("", title=title)
    for header in ("least", "5 %", "median", "95 %", "greatest"):
        table.add_column(header, justify="right")
    return table


def _row(table: Table, name: str, values: Sequence[float], form: str = "{:,.0f}") -> None:
    table.add_row(name, *(form.format(value) for value in values))


def _texts(name: str, found: TextFigures) -> Table:
    table = _percentiles(f"texts of {escape(name)}: {found.texts:,}")
    _row(table, "characters", found.characters)
    _row(table, "words", found.words)
    table.add_section()
    scripts = list(found.scripts.items())[:MOST_SCRIPTS]
    table.add_row("scripts", *_spread([f"{script} {share:.0%}" for script, share in scripts]))
    table.add_row("repeated", f"{found.duplicates:.1%}")
    table.add_row("empty", f"{found.empty:,}")
    table.add_row("none, null, NA …", f"{found.no_text:,}")
    table.add_row("broken", f"{found.broken:,}")
    for text, times in found.common:
        table.add_row("common", f"{times:,} x", escape(printable(text)))
    return table


def _spread(cells: Sequence[str]) -> list[str]:
    """At most five cells; what is more stands in the last one."""
    return [*cells[:4], ", ".join(cells[4:])] if len(cells) > 5 else list(cells)


def _images(name: str, found: ImageFigures) -> Table:
    table = _percentiles(f"pictures of {escape(name)}: {found.images:,}")
    _row(table, "width", found.width)
    _row(table, "height", found.height)
    _row(table, "aspect ratio", found.aspect, "{:.2f}")
    table.add_row("size", *(_bytes(value) for value in found.bytes))
    table.add_section()
    table.add_row("formats", *_spread([f"{form} {share:.1%}" for form, share in found.formats.items()][:5]))
    table.add_row("modes", *_spread([f"{mode} {share:.1%}" for mode, share in found.modes.items()][:5]))
    table.add_row(f"side <= {ALIGN_SIDE}", f"{found.small:.1%}")
    table.add_row(f"aspect >= {ALIGN_ASPECT:g}", f"{found.long:.1%}")
    return table


def _bad(found: Survey) -> Table:
    table = Table("cause", title="bad records")
    table.add_column("records", justify="right")
    table.add_column("of the sample", justify="right")
    table.add_column("the first")
    for cause, (records, detail) in found.bad.items():
        table.add_row(escape(cause), f"{records:,}", f"{records / max(found.sampled, 1):.2%}", escape(printable(detail)[:200]))
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} PiB"
