"""What went wrong in the parts, and what this chip does not run, in words."""

from __future__ import annotations

import dataclasses

from jaxvl.aliases import Json
from jaxvl.bench.accelerator_parts.part import Row

# Part -> what of a row says what is measured; the rest says at which size, and what was found.
SUBJECTS = {
    "numbers": ("kernel", "kind", "dtype", "width"),
    "core": ("implementation",),
    "tiles": ("kernel", "pass"),
    "steps": ("system",),
    "open_clip": ("system",),
    "attention": ("implementation",),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A line for each.

    Attributes:
      wrong: parts that failed, kernels that are off, and what was measured at no size at all.
      failed: sizes that failed of what was measured at others, as a batch that has no room.
      skipped: what this chip does not run by its nature, or for want of a library.
    """

    wrong: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


def judge(parts: dict[str, Json]) -> Verdict:
    """Of what the parts found, by their names."""
    wrong: list[str] = []
    failed: list[str] = []
    skipped: list[str] = []
    for name, found in parts.items():
        if "failed" in found:
            wrong.append(f"{name}: {found['failed'].strip().splitlines()[-1]}")
        elif not found["rows"]:
            wrong.append(f"{name}: nothing was measured")
        elif name == "numbers" and found["cut"]:
            wrong.append("numbers: cut short")
        for subject, rows in _by_subject(name, found["rows"]).items():
            failures = [row for row in rows if "failed" in row]
            measured = len(rows) > len(failures)
            lines = dict.fromkeys(f"{name}: {subject}: {row['failed']}" for row in failures)
            (failed if measured else wrong).extend(lines)
            reasons = dict.fromkeys(row["skipped"] for row in rows if "skipped" in row)
            skipped.extend(f"{name}: {subject}: {reason}" for reason in reasons)
            if any(not row.get("passed", True) and "failed" not in row for row in rows):
                wrong.append(f"{name}: {subject}: off by more than is allowed")
    return Verdict(tuple(wrong), tuple(failed), tuple(skipped))


def _by_subject(part: str, rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one system, kernel or implementation, by its name: `chunked (softmax, float32)`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        first, *rest = (str(row[key]) for key in SUBJECTS[part] if key in row)
        subject = f"{first} ({', '.join(rest)})" if rest else first
        found.setdefault(subject, []).append(row)
    return found
