"""docs/methods.md, made from what the runs of the methods have written.

    python -m jaxvl.bench.methods --runs=FOLDER --out=docs/methods.md --example=tests/carry/NAME.py

FOLDER has one JSON file for each method, its entry. Keys are the fields of `Entry`, and of `Figure`
in `figures`:

    {
     "row": 67,
     "method": "ALBEF",
     "family": "stateful and staged",
     "paper": "Align before Fuse, Li et al. 2021",
     "arxiv": "2107.07651",
     "files": ["jaxvl/objectives/albef.py"],
     "config": "configs/albef_shapes.py",
     "claim": "soft targets of the momentum teacher help where pairs are noisy",
     "seeds": [0, 1, 2],
     "figures": [{"name": "unseen_style/acc@1", "unit": "%", "values": [61.2, 60.8, 62.0],
                  "baseline": [58.1, 57.7, 59.0], "baseline_is": "alpha = 0"}],
     "not_shown": "",
     "machine": "two cores of an AMD EPYC",
     "command": "launch/local.sh configs/albef_shapes.py"
    }

`values` and `baseline` have one value for each seed, in their order; a comparison needs three. A
figure without a comparison, such as a gap to a reference, has no `baseline`. `arxiv` is empty for a
paper that is not there.

`--example` shows as a diff what one method of the carry test adds: NAME.py and
configs/NAME.py beside it.

Raises ConfigError for an entry that is not of this form, or names a file that is not there.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Literal

from jaxvl.config import check, resolve

ROOT = pathlib.Path(__file__).parent.parent.parent
FAMILIES = ("targets and losses", "stateful and staged", "adapters and small data")
LONGEST_EXAMPLE = 60  # lines of one method with its config
LEAST_SEEDS = 3  # of a comparison


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured figure of a method.

    Attributes:
      name: what was measured, `EVALUATOR/METRIC` where an evaluator did.
      values: with the method, one for each seed.
      baseline: without it, the same seeds; empty: no comparison.
      baseline_is: what is left out there, or is another.
      unit: such as `%`.
      digits: after the point.
      better: which direction is an improvement.
    """

    name: str
    values: tuple[float, ...]
    baseline: tuple[float, ...] = ()
    baseline_is: str = "without"
    unit: str = ""
    digits: int = 1
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self):
        check(bool(self.values), "values", "must have a value for each seed")
        pairs = len(self.baseline) in (0, len(self.values))
        problem = f"has {len(self.baseline)} numbers; must have {len(self.values)}, as values"
        check(pairs, "baseline", problem)

    def text(self) -> str:
        """As the table has it: means, and half the range of the seeds."""
        shown = f"{self.name} {self._mean(self.values)}"
        if self.baseline:
            shown += f" ({self.baseline_is}: {self._mean(self.baseline)}"
            shown += f"; {self._wins()} of {len(self.values)} seeds)"
        return shown

    def _mean(self, values: Sequence[float]) -> str:
        text = f"{statistics.mean(values):.{self.digits}f}"
        if len(values) > 1:
            text += f" ± {(max(values) - min(values)) / 2:.{self.digits}f}"
        return f"{text} {self.unit}".rstrip()

    def _wins(self) -> int:
        """Seeds in which the method is better."""
        sign = 1 if self.better == "higher" else -1
        return sum(sign * (a - b) > 0 for a, b in zip(self.values, self.baseline))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method; see the top of this file.

    Attributes:
      row: its number in the list of methods.
      family: one of `FAMILIES`.
      files: what was added for it, under the repository's root.
      config: a config that runs it, or empty.
      claim: what is shown, in one sentence.
      figures: that show it; empty where tests alone do.
      not_shown: what the paper claims and was tried here without success, or was not tried.
      machine: that the figures are from.
    """

    row: int
    method: str
    family: Literal["targets and losses", "stateful and staged", "adapters and small data"]
    paper: str
    files: tuple[str, ...]
    config: str
    claim: str
    figures: tuple[Figure, ...]
    command: str
    machine: str
    not_shown: str = ""
    arxiv: str = ""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        number = re.fullmatch(r"\d{4}\.\d{4,5}|", self.arxiv) is not None
        check(number, "arxiv", f"{self.arxiv!r} must be a number such as '2107.07651', or empty")
        for i, figure in enumerate(self.figures):
            count = len(figure.values)
            problem = f"has {count} numbers; must have {len(self.seeds)}, one for each seed"
            check(count == len(self.seeds), f"figures[{i}].values", problem)
            enough = not figure.baseline or count >= LEAST_SEEDS
            problem = f"a comparison over {count} seeds; must be over {LEAST_SEEDS} or more"
            check(enough, f"figures[{i}].baseline", problem)

    def check_files(self, root: pathlib.Path) -> None:
        """Raises ConfigError where a file or the config is not there."""
        for file in self.files:
            check((root / file).is_file(), "files", f"{file!r} is not a file of the repository")
        there = not self.config or (root / self.config).is_file()
        check(there, "config", f"{self.config!r} is not there")


def read_entries(folder: pathlib.Path, root: pathlib.Path = ROOT) -> list[Entry]:
    """The entries of a folder, by family and row. Raises ConfigError at `FILE: KEY`."""
    entries = []
    for file in sorted(folder.glob("*.json")):
        entry = resolve(Entry, json.loads(file.read_text()), file.name)
        entry.check_files(root)
        entries.append(entry)
    check(bool(entries), "--runs", f"{folder} has no entry (*.json)")
    rows = collections.Counter(entry.row for entry in entries)
    twice = [str(row) for row, count in rows.items() if count > 1]
    check(not twice, "row", f"{', '.join(twice)}: more than one entry has it")
    return sorted(entries, key=lambda entry: (FAMILIES.index(entry.family), entry.row))


def table(entries: Sequence[Entry], up: str = "../") -> str:
    """The entries as Markdown, a table for each family.

    Args:
      up: from the page's folder to the repository's root.
    """
    parts = []
    for family in FAMILIES:
        mine = [entry for entry in entries if entry.family == family]
        if not mine:
            continue
        lines = [f"## {family[0].upper()}{family[1:]}", "", _row(*_HEADINGS), _row(*["---"] * 7)]
        lines += [_row(*_cells(entry, up)) for entry in mine]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


_HEADINGS = ("row", "method", "paper", "file", "config", "what it proves here", "command")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(entry: Entry, up: str) -> list[str]:
    """The cells of a row; a bar inside one would end it."""
    paper = entry.paper
    if entry.arxiv:
        paper = f"[{paper}](https://arxiv.org/abs/{entry.arxiv})"
    link = lambda path: f"[{pathlib.PurePath(path).name}]({up}{path})"  # noqa: E731
    proof = [entry.claim.rstrip(".") + "."]
    if entry.figures:
        measured = "; ".join(figure.text() for figure in entry.figures)
        proof.append(f"Measured: {measured}.")
    if entry.not_shown:
        proof.append(f"**Not shown**: {entry.not_shown}.")
    cells = [
        str(entry.row),
        entry.method,
        paper,
        "<br>".join(map(link, entry.files)),
        link(entry.config) if entry.config else "",
        " ".join(proof),
        f"`{entry.command}` ({entry.machine})",
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def example(file: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    """A carry method and its config as a diff in Markdown. Raises ConfigError where one is missing,
    or both are longer than `LONGEST_EXAMPLE` lines."""
    config = file.parent / "configs" / file.name
    parts = []
    total = 0
    for path in (file, config):
        check(path.is_file(), "--example", f"{path} is not there")
        lines = path.read_text().splitlines()
        total += len(lines)
        name = path.resolve().relative_to(root.resolve()).as_posix()
        added = "\n".join(f"+{line}" for line in lines)
        parts.append(f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{added}")
    problem = f"{total} lines with its config; must be at most {LONGEST_EXAMPLE}"
    check(total <= LONGEST_EXAMPLE, "--example", problem)
    diff = "\n".join(parts)
    return f"## Adding a method: {total} lines\n\n```diff\n{diff}\n```"


def page(entries: Sequence[Entry], command: str, shown: str = "") -> str:
    """The whole page; `shown`: what `example` gives, or nothing."""
    head = (
        "# Methods\n\n"
        f"Made by `{command}` from what the runs have written; change it there, not here.\n"
        "Figures are means over the seeds, ± half their range; in brackets the same run without "
        "the method, and in how many seeds the method is better."
    )
    return "\n\n".join(part for part in (head, table(entries), shown) if part) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the entries")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the page")
    parser.add_argument("--example", type=pathlib.Path, help="a method of the carry test")
    args = parser.parse_args(argv)
    shown = example(args.example) if args.example else ""
    command = f"python -m jaxvl.bench.methods --runs={args.runs} --out={args.out}"
    if args.example:
        command += f" --example={args.example}"
    entries = read_entries(args.runs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(entries, command, shown))
    print(f"{len(entries)} methods written to {args.out}")


if __name__ == "__main__":
    main()
