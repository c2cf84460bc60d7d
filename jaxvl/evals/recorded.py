"""What a run recorded in its folder, read for the report.

Whatever else a file holds is left out, and reported.
A folder may be of an older version, cut short by a full disk, or edited by hand. So every value is
checked for its type here, and whoever shows it need not.
"""

from __future__ import annotations

import base64
import binascii
import collections
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.evals.shown import brief

# of a figure; float32 reaches neither
LARGEST = 1e100
SMALLEST = 1e-100
LATEST = 1e11  # seconds since the epoch
# levels of a config, and entries of each
DEEPEST = 20
MOST = 1000
LONGEST_SETTING = 2000  # characters
LARGEST_PICTURE = 2**20  # characters of base64
_IN_RECORD = ("step", "time", "kind", "name")

LeftOut = list[str]  # sentences
_NOTHING = object()


def read_metrics(path: paths.Path, left_out: LeftOut | None = None) -> list[dict[str, Json]]:
    """Records of a `metrics.jsonl`, in order of steps; values that are not finite are None.

    Of records of one step, kind and name the last counts: a resumed run repeats some. A line that
    is no record, such as one cut off by a crash, is left out; so is a value that is neither a
    number nor, in an event, a text.

    Args:
      left_out: gets a sentence for each kind of thing that was left out.
    """
    notes: LeftOut = [] if left_out is None else left_out
    records: dict[tuple[int, str, str], dict[str, Json]] = {}
    bad_lines: list[int] = []
    bad_values = collections.Counter()
    for number, line in enumerate(_lines(path, notes), 1):
        if not line.strip():
            continue
        try:
            record = _record(json.loads(line.decode("utf-8")), bad_values)
        except (ValueError, RecursionError):
            bad_lines.append(number)
            continue
        records[record["step"], record["kind"], record["name"]] = record
    if bad_lines:
        lines = f"{len(bad_lines)} lines are no records; the first is line {bad_lines[0]}"
        notes.append(
            f"{path.name}: "
            + (lines if len(bad_lines) > 1 else f"line {bad_lines[0]} is no record")
        )
    if bad_values:
        names = ", ".join(brief(name, 40) for name, _ in bad_values.most_common(3))
        notes.append(
            f"{path.name}: {bad_values.total()} values are of no use here "
            f"({names}{' …' if len(bad_values) > 3 else ''})"
        )
    return sorted(records.values(), key=lambda record: record["step"])


def read_group(path: paths.Path, left_out: LeftOut) -> dict[str, Json]:
    """The keys of a JSON file, long texts and deep groups cut; {} where it is missing or holds
    something else."""
    return plain(_read_mapping(path, left_out))


def read_galleries(path: paths.Path, left_out: LeftOut) -> dict[str, dict[str, Json]]:
    """Evaluator -> `step` and `rows` (`GalleryRow.to_json`) of a `gallery.json`."""
    galleries = {}
    for name, gallery in _read_mapping(path, left_out).items():
        if not _is_gallery(gallery):
            left_out.append(f"{path.name}: {brief(name, 40)!r} is no gallery")
            continue
        rows = [_gallery_row(row) for row in gallery["rows"]]
        good = [row for row in rows if row is not None]
        if len(good) < len(rows):
            left_out.append(
                f"{path.name}: {len(rows) - len(good)} of {len(rows)} rows of "
                f"{brief(name, 40)!r} are not as they should be"
            )
        galleries[brief(name)] = {"step": gallery["step"], "rows": good}
    return galleries


def plain(value: Json, depth: int = 0) -> Json:
    """A JSON value that can be shown: numbers that are not finite as text, long texts, long lists
    and deep groups cut."""
    if isinstance(value, str):
        return brief(value, LONGEST_SETTING)
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, (Mapping, list)) and depth == DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        entries = itertools.islice(value.items(), MOST)
        return {brief(key): plain(entry, depth + 1) for key, entry in entries}
    if isinstance(value, list):
        return [plain(entry, depth + 1) for entry in value[:MOST]]
    return value


def set_aside(path: paths.Path) -> paths.Path:
    """Renames a file that cannot be used to one that is not there yet; returns its new path."""
    for n in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged-{n}")
        if not paths.exists(aside):
            paths.move(path, aside)
            return aside
    raise AssertionError


def number(value: float | None) -> float | int | None:
    """A figure as it can be drawn; None where it is not finite, or beyond what any figure is."""
    if value is None or abs(value) > LARGEST or not math.isfinite(value):
        return None
    return value if value == 0 or abs(value) >= SMALLEST else 0.0


def is_number(value: Json) -> bool:
    """Whether a JSON value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_step(value: Json) -> bool:
    """Whether a JSON value can be a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _lines(path: paths.Path, left_out: LeftOut) -> list[bytes]:
    try:
        return paths.read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        left_out.append(f"{path.name}: cannot be read ({error.strerror})")
        return []


def _read_mapping(path: paths.Path, left_out: LeftOut) -> Mapping[str, Any]:
    """A JSON object; empty where the file is missing or holds something else."""
    found = _read_json(path, left_out)
    if found is _NOTHING:
        return {}
    if not isinstance(found, Mapping):
        left_out.append(f"{path.name}: holds no group of keys, but a {type(found).__name__}")
        return {}
    return found


def _read_json(path: paths.Path, left_out: LeftOut) -> Any:
    """`_NOTHING` where the file is missing, or is not JSON."""
    try:
        return json.loads(paths.read_text(path))
    except FileNotFoundError:
        return _NOTHING
    except OSError as error:
        left_out.append(f"{path.name}: cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        left_out.append(f"{path.name}: is not JSON ({brief(str(error), 100)})")
    return _NOTHING


def _record(found: Any, bad_values: collections.Counter) -> dict[str, Any]:
    """A line of `metrics.jsonl`, its values checked. Raises ValueError where it is no record."""
    if not isinstance(found, dict) or not is_step(found.get("step")):
        raise ValueError("no step")
    if not isinstance(found.get("kind"), str) or not isinstance(found.get("name"), str):
        raise ValueError("no kind or no name")
    record = {"step": found["step"], "kind": brief(found["kind"]), "name": brief(found["name"])}
    time = found.get("time")
    if is_number(time) and 0 <= time <= LATEST:
        record["time"] = time
    texts = found["kind"] == "event"
    for key, value in found.items():
        if key in _IN_RECORD:
            continue
        if value is None or is_number(value):
            record[brief(key)] = number(value)
        elif texts and isinstance(value, str):
            record[brief(key)] = brief(value, LONGEST_SETTING)
        else:
            bad_values[key] += 1
    return record


def _is_gallery(gallery: Any) -> bool:
    return (
        isinstance(gallery, dict)
        and is_step(gallery.get("step"))
        and isinstance(gallery.get("rows"), list)
    )


def _gallery_row(row: Any) -> dict[str, Any] | None:
    """A row as `GalleryRow.to_json` writes it, texts cut; None where it is none."""
    if not isinstance(row, dict) or not isinstance(row.get("items"), list):
        return None
    texts = [row.get("group"), row.get("text"), row.get("note", "")]
    rank = row.get("rank")
    if (
        not all(isinstance(text, str) for text in texts)
        or not (rank is None or is_number(rank))
        or not _is_picture(row.get("image"))
    ):
        return None
    items = [_gallery_item(item) for item in row["items"]]
    if None in items:
        return None
    group, text, note = map(brief, texts)
    return {
        "group": group,
        "text": text,
        "image": row.get("image"),
        "items": items,
        "rank": number(rank),
        "note": note,
    }


def _gallery_item(item: Any) -> dict[str, Any] | None:
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("text"), str)
        or not isinstance(item.get("right"), bool)
    ):
        return None
    score = item.get("score")
    if not (score is None or is_number(score)) or not _is_picture(item.get("image")):
        return None
    return {
        "text": brief(item["text"]),
        "score": number(score),
        "right": item["right"],
        "image": item.get("image"),
    }


def _is_picture(image: Any) -> bool:
    """Whether it is None, or a small PNG in base64."""
    if image is None:
        return True
    if not isinstance(image, str) or len(image) > LARGEST_PICTURE:
        return False
    try:
        return base64.b64decode(image, validate=True).startswith(b"\x89PNG")
    except (binascii.Error, ValueError):
        return False
