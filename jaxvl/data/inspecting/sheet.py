"""Pictures with their texts, as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import jinja2

from jaxvl import paths
from jaxvl.data.inspecting.paste import main_text
from jaxvl.data.inspecting.survey import Example, Survey


def write_sheet(path: paths.Path, found: Survey, seed: int) -> None:
    """Raises OSError."""
    loader = jinja2.PackageLoader("jaxvl.data.inspecting", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    examples = [_shown(one, found.captions) for one in found.examples]
    template = environment.get_template("sheet.html")
    paths.write_text(
        path,
        template.render(
            name=printable(found.name), records=found.records, seed=seed, examples=examples
        ),
    )


def _shown(one: Example, captions: Sequence[str]) -> dict[str, Any]:
    """What the template reads of a record: its captions, and below them what only names it."""
    texts = {name: printable(text) for name, text in one.texts.items()}
    first = main_text(captions)
    order = sorted(captions, key=lambda name: name != first)
    written = {name: texts[name] for name in order if name in texts}
    about = {name: text for name, text in texts.items() if name not in captions}
    missing = "no text" if captions and not written else ""
    picture = _address(one.picture)
    return {
        "position": one.position,
        "picture": picture,
        "fault": one.fault,
        "captions": written,
        "missing": missing,
        "about": about,
    }


def printable(text: str) -> str:
    r"""The text without what UTF-8 or a terminal cannot show: lone surrogates and control
    characters as `\x00`."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        letter if letter.isprintable() or letter in "\u200d\ufe0f" else repr(letter)[1:-1]
        for letter in shown
    )


def _address(picture: bytes | None) -> str | None:
    return (
        None if picture is None else "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    )
