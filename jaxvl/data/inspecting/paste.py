"""The lines of a config file that read data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvl.aliases import Leaf, Node
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.table import NAMES

BATCH = 256
SIZE = 224  # pixels
LENGTH = 64  # tokens
LOCAL = ("path", "files", "data_dir", "images")  # options of sources that hold paths
DEFAULTS = {
    "picture": "image",
    "frames": "frames",
    "waveform": "audio",
    "label": "class_label",
}  # field -> column that it reads by itself


def data_config(
    source: Node, records: int, columns: Mapping[str, Column], captions: Sequence[str]
) -> dict[str, Leaf]:
    """A task's `data`: the source, a batch, and fields of its first picture, clip and sound with a
    text, or with a class without one.

    Args:
      source: its config.
      captions: its columns of texts that say something of a record.
    """
    first: dict[str, str] = {}
    for name, column in columns.items():
        first.setdefault(column.kind, name)
    fields: dict[str, Leaf] = {}
    if "image" in first:
        fields["image"] = _field(
            "picture", "column", "image" if "image" in columns else first["image"], size=SIZE
        )
    if "frames" in first:
        fields["video"] = _field("frames", "column", first["frames"], size=SIZE)
    if "audio" in first:
        fields["waveform"] = _field("waveform", "columns", first["audio"])
    text = main_text(captions)
    if text is not None:
        fields["text"] = dict(name="caption", columns=text, length=LENGTH)
    elif "class" in first:
        fields["class_label"] = _field("label", "column", first["class"])
    if not fields:
        fields = {
            name: dict(name="number", column=name)
            for name, column in columns.items()
            if column.kind in ("int", "float")
        }
    return dict(
        source=absolute(source), batch=min(BATCH, 2 ** (records.bit_length() - 1)), fields=fields
    )


def main_text(captions: Sequence[str]) -> str | None:
    """The column of texts that is trained on first: one named as captions are, else English names,
    else the first."""
    for name in (*NAMES["text"], "name/en"):
        if name in captions:
            return name
    return captions[0] if captions else None


def _field(name: str, option: str, column: str, **more: Any) -> dict[str, Leaf]:
    return dict(name=name, **({} if column == DEFAULTS[name] else {option: column}), **more)


def absolute(source: Node) -> dict[str, Leaf]:
    """The config of a source with local paths from the root, so that it may be used in any folder;
    `name` and paths come first."""
    found = {key: source[key] for key in ("name", *LOCAL) if key in source} | dict(source)
    for option in LOCAL:
        value = found.get(option)
        if isinstance(value, str) and "://" not in value:
            found[option] = "::".join(
                os.path.abspath(os.path.expanduser(part)) for part in value.split("::")
            )
    return found


def as_lines(data: Node, columns: Mapping[str, Column]) -> str:
    """`data` as it is written in a config file, and which columns it leaves out."""
    fields = data["fields"]
    lines = [
        "data = dict(",
        f"    source={_call(data['source'])},",
        f"    batch={data['batch']},",
        "    fields=dict(",
    ]
    lines += [f"        {name}={_call(field)}," for name, field in fields.items()]
    lines += ["    ),", ")"]
    read = {
        value
        for field in fields.values()
        for key, value in field.items()
        if key in ("column", "columns")
    }
    read |= {
        DEFAULTS[field["name"]]
        for field in fields.values()
        if field["name"] in DEFAULTS and not {"column", "columns"} & set(field)
    }
    others = [f"{name} ({column.kind})" for name, column in columns.items() if name not in read]
    if others:
        lines.append(f"# further columns: {_few(others)}")
    if "text" not in fields and "class_label" not in fields:
        lines.append(
            "# no column of texts or classes, which models of pairs need (in a folder: "
            "NAME.txt beside NAME.jpg)"
        )
    return "\n".join(lines)


def _call(options: Node) -> str:
    return f"dict({', '.join(f'{key}={_literal(value)}' for key, value in options.items())})"


def _literal(value: Any) -> str:
    """As Python, in double quotes where nothing must be escaped otherwise."""
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, str) and value.isprintable()
        else repr(value)
    )


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
