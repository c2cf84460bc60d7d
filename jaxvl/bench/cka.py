"""Which encoders fit together: CKA of features that jobs have cached, of every pair.

    python -m jaxvl.bench.cka --images runs/a/tables/features:image_pooled \\
        runs/b/tables/features:image_pooled --texts runs/c/tables/features:text_pooled

Each is FOLDER:COLUMN of a table that the job `cache_features` made of the same records. Pairs are
listed from the most alike to the least ("From unimodal to multimodal", Maniparambil et al. 2024,
arXiv 2409.19425, section 3.1: the more alike, the better projectors between them do). Rows are read
`--block` at a time. `evals/metrics/cka.py` says what the two figures are.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxvl.bench.harness import publish
from jaxvl.config import check
from jaxvl.data.tables import PRESENT, SavedTable, named_table
from jaxvl.evals.metrics.cka import cka

BLOCK = 8_192
Row = dict[str, str | float | int]


def alignments(images: Sequence[str], texts: Sequence[str], block: int = BLOCK) -> list[Row]:
    """Rows `image`, `text`, `cka`, `unbiased`, `records` of all pairs, the most alike first.

    Args:
      images, texts: FOLDER:COLUMN of each.
      block: rows at a time.

    Raises:
      ConfigError: a table that is not there, has not the column, or is of other records.
    """
    rows = []
    for image in images:
        for text in texts:
            pair = _opened(image, "images"), _opened(text, "texts")
            (one, _), (other, _) = pair
            problem = f"{text!r} is of the records of another source than {image!r}"
            check(one.source == other.source, "texts", f"{problem}; must be of the same")
            kept = _kept(one) & _kept(other)
            found = cka(_blocks(pair, kept, block))
            figures = dict(cka=found.linear, unbiased=found.unbiased, records=int(kept.sum()))
            rows.append(dict(image=image, text=text, **figures))
    return sorted(rows, key=lambda row: -row["cka"])


def _opened(place: str, key: str) -> tuple[SavedTable, str]:
    """The table and the column. Raises ConfigError at `key`."""
    folder, colon, column = place.rpartition(":")
    check(bool(colon), key, f"{place!r} must be FOLDER:COLUMN")
    table = named_table(folder, key)
    known = ", ".join(table.columns)
    check(column in table.columns, key, f"{column!r} is no column of {folder!r} (columns: {known})")
    shape = table.columns[column].shape
    check(len(shape) == 2, key, f"{column!r} has shape {shape}; must be one vector a record")
    return table, column


def _kept(table: SavedTable) -> np.ndarray:
    """Which records have values, bool [n]."""
    records = next(iter(table.columns.values())).shape[0]
    return np.asarray(table.array(PRESENT)) if table.partial else np.ones(records, bool)


def _blocks(
    pair: tuple[tuple[SavedTable, str], ...], kept: np.ndarray, block: int
) -> Iterator[tuple[np.ndarray, ...]]:
    columns = [table.array(column) for table, column in pair]
    for start in range(0, len(kept), block):
        mask = kept[start : start + block]
        yield tuple(np.asarray(column[start : start + block])[mask] for column in columns)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; returns (and, with --json, writes) its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDER:COLUMN")
    parser.add_argument("--texts", nargs="+", required=True, metavar="FOLDER:COLUMN")
    parser.add_argument("--block", type=int, default=BLOCK, help="rows at a time")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    rows = alignments(args.images, args.texts, args.block)
    table = Table(title="CKA of encoders")
    for name in ("image", "text", "CKA", "unbiased", "records"):
        table.add_column(name, overflow="fold")
    for row in rows:
        figures = (f"{row['cka']:.3f}", f"{row['unbiased']:.3f}", f"{row['records']:,}")
        table.add_row(row["image"], row["text"], *figures)
    publish(Console(), table, {"rows": rows}, args.json)
    return rows


if __name__ == "__main__":
    main()
