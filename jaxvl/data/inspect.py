"""Show what is inside data: `python -m jaxvl.data.inspect PATH`.

PATH is a file, a folder, or a pattern of files; its format is recognised: WebDataset tars, Parquet,
Hugging Face datasets on disk, TFDS, ArrayRecord, JSONL, CSV, TSV, folders of pictures, MDS. Prints
records, shards, columns, figures of texts and pictures, bad records by cause and the time to read,
and the data of a config file that reads it; writes a contact sheet. Only a sample is read.
`--config=configs/clip.py:data=PATH` of `jaxvl.train` reads PATH in the same way.

Options:
  --source=NAME --source.KEY=VALUE   instead of PATH, or to change what was recognised
  --sample=2000 --seed=0             records that are looked at, and which
  --sheet=60                         records on the contact sheet
  --out=FILE                         the contact sheet (default: inspect-NAME.html in the current
                                     folder)
  --json                             figures as JSON instead of tables
  --plugins=FILE                     your own sources

Exit status: 0 done, 1 unreadable data, 2 wrong option.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import ml_collections
from rich.console import Console
from rich.markup import escape

from jaxvl import paths
from jaxvl.aliases import Json, Leaf, Node
from jaxvl.command import run_command, start
from jaxvl.config import (
    ConfigError,
    PathText,
    Plugin,
    Range,
    Seed,
    check,
    load_plugins,
    nearest,
    override,
    resolve,
    to_path,
)
from jaxvl.data.inspecting.paste import as_lines, data_config
from jaxvl.data.inspecting.recognise import recognise
from jaxvl.data.inspecting.sheet import write_sheet
from jaxvl.data.inspecting.show import show
from jaxvl.data.inspecting.survey import Survey, survey
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """See the command's text."""

    source: Annotated[Any, SOURCES]
    sample: Annotated[int, Range(1, 10_000_000)] = 2_000
    seed: Seed = 0
    sheet: Annotated[int, Range(0, 10_000)] = 60
    out: PathText | None = None
    json: bool = False
    plugins: tuple[Plugin, ...] = ()

    @classmethod
    def before_resolving(cls, node: Node) -> Node:
        """Imports the plugins, whose sources the other keys may name."""
        return {**node, "plugins": load_plugins(node.get("plugins", ()))}


NAMES = tuple(InspectConfig.__dataclass_fields__)


def parse(argv: Sequence[str]) -> tuple[InspectConfig, dict[str, Leaf]]:
    """(config, config of the source as it was written or recognised). Raises ConfigError."""
    assignments: dict[str, str] = {}
    words = []
    for word in argv:
        name, separator, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            words.append(word)
            continue
        check(
            name.partition(".")[0] in NAMES,
            f"--{name}",
            f"unknown option{nearest(name, NAMES)} (options: {', '.join(NAMES)})",
        )
        check(bool(separator) or name == "json", f"--{name}", "needs a value: --NAME=VALUE")
        assignments[name] = value if separator else "true"
    check(
        len(words) <= 1,
        "command line",
        f"{len(words)} paths; must be one (quote a pattern: 'data/*.tar')",
    )
    named = any(name.partition(".")[0] == "source" for name in assignments)
    check(
        bool(words) or named,
        "PATH",
        "is required, or --source=NAME; see python -m jaxvl.data.inspect --help",
    )
    load_plugins(assignments.get("plugins", ()))
    node = {"source": recognise(words[0])} if words and "source" not in assignments else {}
    ordered = dict(sorted(assignments.items(), key=lambda item: item[0].count(".")))
    filled = override(ml_collections.ConfigDict(node), ordered).to_dict()
    source = filled["source"]
    written = {"name": source} if isinstance(source, str) else dict(source)
    return resolve(InspectConfig, filled), written


def figures(found: Survey) -> dict[str, Json]:
    """A survey as plain values, JSON-able."""
    plain = dataclasses.asdict(dataclasses.replace(found, examples=[]))
    del plain["examples"]
    return plain


def _run(argv: Sequence[str], console: Console) -> int:
    config, written = parse(argv)
    try:
        source = config.source.open(lambda text: console.print(escape(text), soft_wrap=True))
    except ConfigError as error:
        raise error.under("source") from None
    check(len(source) > 0, "source", f"{source.name} has no records")
    found = survey(source, config.sample, config.seed, config.sheet)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-")[-60:]
    sheet = to_path(config.out or f"inspect-{name}.html", "--out")
    write_sheet(sheet, found, config.seed)
    data = data_config(written, len(source), source.columns, found.captions)
    if config.json:
        print(json.dumps({**figures(found), "data": data, "sheet": str(sheet)}, indent=1))
        return 0
    out = Console(highlight=False)
    show(found, out)
    print(f"contact sheet: {paths.absolute(sheet)}")
    print()
    print("to paste into a config file, with the sizes of your model:")
    print()
    print(as_lines(data, source.columns))
    return 0


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (DataError, OSError))


if __name__ == "__main__":
    start(main, __doc__)
