"""What each rule took away: `report.json`, `report.html` and its pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.data.pictures import open_picture
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.pipeline import BAD
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Source

if TYPE_CHECKING:
    from jaxvl.data.preparing.run import Prepared

THUMBNAIL = 160  # pixels
WHITE = (1.0, 1.0, 1.0)
BAD_RECORDS = "bad records"  # title of their page


def summary(prepared: Prepared, config: PrepareConfig) -> dict[str, Json]:
    """Counts as plain values, JSON-able. Equal runs have equal ones: it says nothing of time."""
    return {
        "records": prepared.records,
        "bad": dict(prepared.bad),
        "rules": [dataclasses.asdict(rule) for rule in prepared.rules],
        "kept": prepared.kept,
        "shards": len(prepared.shards),
        "format": config.format,
    }


def write(
    folder: paths.Path,
    counts: dict[str, Json],
    examples: Mapping[str, Sequence[Sequence[Json]]],
    source: Source,
    config: PrepareConfig,
) -> None:
    """Writes the report into `folder`.

    Args:
      counts: of `summary`.
      examples: rule or `bad/CAUSE` -> (draw, position, texts, why) of each.
    """
    shown = {
        name: [_shown(example, source, config) for example in found]
        for name, found in examples.items()
    }
    plain = {
        name: [{k: v for k, v in one.items() if k != "picture"} for one in found]
        for name, found in shown.items()
    }
    paths.write_text(
        folder / "report.json",
        json.dumps({**counts, "examples": plain}, indent=1, ensure_ascii=False, sort_keys=True),
    )
    loader = jinja2.PackageLoader("jaxvl.data.preparing", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    paths.make_folder(folder / "report")
    bad = [
        one for name, found in sorted(shown.items()) if name.startswith(f"{BAD}/") for one in found
    ]
    pages = [(rule["name"], rule, shown.get(rule["name"], [])) for rule in counts["rules"]]
    pages.append((BAD_RECORDS, None, bad))
    for name, rule, found in pages:
        text = template.render(
            counts=counts, source=source.name, page=name, rule=rule, examples=found
        )
        paths.write_text(folder / "report" / f"{name.replace(' ', '_')}.html", text)
    text = template.render(counts=counts, source=source.name, page=None, rule=None, examples=[])
    paths.write_text(folder / "report.html", text)


def _shown(example: Sequence[Any], source: Source, config: PrepareConfig) -> dict[str, Json]:
    _, position, texts, why = example
    return {
        "position": position,
        "texts": list(texts),
        "why": why,
        "picture": _thumbnail(position, source, config.image),
    }


def _thumbnail(position: int, source: Source, column: str) -> str | None:
    """A `data:` address of a small picture; None where it cannot be decoded."""
    try:
        picture = open_picture(source.read(position, [column])[column], THUMBNAIL, background=WHITE)
    except (BadRecord, KeyError):
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
