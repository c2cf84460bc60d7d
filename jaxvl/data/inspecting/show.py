"""A survey as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxvl.data.inspecting.images import ALIGN_ASPECT, ALIGN_SIDE, ImageFigures
from jaxvl.data.inspecting.paste import main_text
from jaxvl.data.inspecting.sheet import printable
from jaxvl.data.inspecting.survey import ColumnFigures, Survey
from jaxvl.data.inspecting.texts import TextFigures

MOST_SHARES = 5
MOST_COLUMNS = 40  # lines of the table of columns
MOST_TEXTS = 3  # columns of texts with a table of their own


def show(found: Survey, console: Console) -> None:
    console.print(f"[bold]{escape(printable(found.name))}[/]", soft_wrap=True)
    size = found.bytes * found.records
    console.print(
        f"{found.records:,} {_plural('record', found.records)} in {_shards(found)}; "
        f"{found.sampled:,} were looked at",
        soft_wrap=True,
    )
    console.print(
        f"{_bytes(found.bytes)} a record, {_bytes(size)} in all by this sample; fingerprint "
        f"{escape(found.fingerprint[:16])}"
    )
    console.print()
    console.print(_columns(found))
    for name, column in found.columns.items():
        if column.image is not None:
            console.print()
            _show_images(name, column.image, console)
    for name in _texts_shown(found.captions):
        console.print()
        _show_texts(name, found.columns[name].text, console)
    console.print()
    if found.bad:
        console.print(_bad(found))
        console.print()
    console.print(_speed(found))


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _shards(found: Survey) -> str:
    shards, fewest, median, most = found.shards
    if shards == 1:
        return "one shard"
    if fewest == most:
        return f"{shards:,} shards of {most:,}"
    return f"{shards:,} shards of {fewest:,} to {most:,}, median {median:,}"


def _speed(found: Survey) -> str:
    read = found.read_ms
    decode = found.decode_ms
    line = f"read: {read[0]:.2f} ms a record (median {read[1]:.2f}, 95 % {read[2]:.2f})"
    if decode[0]:
        line += (
            f"; decode: {decode[0]:.2f} ms a picture (median {decode[1]:.2f}, 95 % {decode[2]:.2f})"
        )
    return f"{line}; on one core"


def _table(title: str, *left: str) -> Table:
    table = Table(
        *left,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
    )
    table.show_edge = False
    table.pad_edge = False
    return table


def _columns(found: Survey) -> Table:
    table = _table("Columns")
    table.add_column("column", style="cyan", overflow="fold")
    table.add_column("kind")
    for title in ("present", "mean size"):
        table.add_column(title, justify="right")
    table.add_column("values", overflow="fold")
    for name, column in list(found.columns.items())[:MOST_COLUMNS]:
        size = "" if column.bytes is None else _bytes(column.bytes)
        values = escape(printable(column.values)) if column.values else _summary(column)
        table.add_row(escape(name), column.kind, _percent(column.present), size, values)
    if len(found.columns) > MOST_COLUMNS:
        table.add_row(f"… {len(found.columns) - MOST_COLUMNS:,} more")
    return table


def _summary(column: ColumnFigures) -> str:
    if column.text is not None:
        return (
            f"median {column.text.words[2]:.0f} {_plural('word', round(column.text.words[2]))}, "
            f"{_percent(column.text.duplicates)} repeated"
        )
    if column.image is not None:
        return (
            f"median {column.image.width[2]:.0f} x {column.image.height[2]:.0f} pixels, "
            f"{', '.join(column.image.formats)}"
        )
    return ""


def _texts_shown(captions: Sequence[str]) -> list[str]:
    """The column that is trained on first, then others in their order."""
    main = main_text(captions)
    return sorted(captions, key=lambda name: name != main)[:MOST_TEXTS]


def _percentiles(title: str) -> Table:
    table = _table(title, "")
    for header in ("least", "5 %", "median", "95 %", "greatest"):
        table.add_column(header, justify="right")
    return table


def _row(table: Table, name: str, values: Sequence[float], form: str = "{:,.0f}") -> None:
    table.add_row(name, *(form.format(value) for value in values))


def _show_texts(name: str, found: TextFigures, console: Console) -> None:
    table = _percentiles(f"Texts of {escape(name)}")
    _row(table, "characters", found.characters)
    _row(table, "words", found.words)
    console.print(table)
    faults = {
        "empty": found.empty,
        "such as None, null or NA": found.no_text,
        "with broken letters": found.broken,
    }
    parts = [f"{n:,} {what}" for what, n in faults.items() if n]
    about = (
        f"{found.texts:,} {_plural('text', found.texts)}: {_shares(found.scripts)}; "
        f"{_percent(found.duplicates)} repeated"
    )
    console.print("; ".join([about, *parts]), soft_wrap=True)
    if found.common:
        common = ", ".join(
            f"{escape(printable(text))} ({times:,} x)" for text, times in found.common
        )
        console.print(f"most common: {common}")


def _show_images(name: str, found: ImageFigures, console: Console) -> None:
    table = _percentiles(f"Pictures of {escape(name)}")
    _row(table, "width", found.width)
    _row(table, "height", found.height)
    _row(table, "aspect ratio", found.aspect, "{:.2f}")
    table.add_row("size", *(_bytes(value) for value in found.bytes))
    console.print(table)
    console.print(
        f"{found.images:,} {_plural('picture', found.images)}: {_shares(found.formats)}; "
        f"{_shares(found.modes)}",
        soft_wrap=True,
    )
    small = _percent(found.small)
    long = _percent(found.long)
    rules = (
        f"shorter side at most {ALIGN_SIDE} pixels: {small}; aspect ratio at least "
        f"{ALIGN_ASPECT:g}: {long}"
    )
    console.print(f"ALIGN's rules leave out: {rules}", soft_wrap=True)


def _shares(shares: Mapping[str, float]) -> str:
    """`PNG 99.0 %, JPEG 1.0 %`, the most frequent ones."""
    return ", ".join(
        f"{escape(name)} {_percent(share)}" for name, share in list(shares.items())[:MOST_SHARES]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bad(found: Survey) -> Table:
    table = _table("Bad records", "cause")
    table.add_column("records", justify="right")
    table.add_column("of the sample", justify="right")
    table.add_column("the first", overflow="fold")
    for cause, (records, detail) in found.bad.items():
        table.add_row(
            escape(cause),
            f"{records:,}",
            f"{100 * records / max(found.sampled, 1):.2f} %",
            escape(printable(detail)[:200]),
        )
    return table


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} PiB"
