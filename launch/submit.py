#!/usr/bin/env python3
"""Starts a run of jaxvl on this machine or hands it to a cluster: `launch/submit.py TARGET [OPTIONS]
-- --config=FILE[:ARG] --workdir=FOLDER [--config.KEY=VALUE …]`.

What follows `--` are the words of the command, `jaxvl.train` unless `--module` names another one.
`launch/submit.py TARGET --help` tells the options of a target, and `--dry-run` prints what would be
submitted, ready to be saved or piped, and submits nothing.

Each target is the cluster's own engine, in a file of its own in `launch/targets`; a file that is put
there is found by its name. Needs Python 3.11 and PyYAML, not JAX.

Exit status: that of the run (local), or of the command that submits it; 2 wrong option.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import sys
from collections.abc import Sequence

from targets._base import WRONG, Parser, Run, UsageError, add_shared

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(FOLDER.parent))  # this project's `jaxvl`, before any that is installed


def targets() -> dict[str, str]:
    """Name -> the first line of what each target's module says of itself."""
    found = {}
    for module in pkgutil.iter_modules([str(FOLDER / "targets")]):
        if not module.name.startswith("_"):
            text = importlib.import_module(f"targets.{module.name}").__doc__ or ""
            found[module.name] = text.splitlines()[0]
    return found


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    after = []
    if "--" in words:
        after = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    if not words or words[0] in ("-h", "--help"):
        summaries = "\n".join(f"  {name:10} {text}" for name, text in targets().items())
        print(f"{__doc__}\nTargets:\n{summaries}")
        return 0 if words else WRONG
    name, *own = words
    try:
        if name not in targets():
            raise UsageError(f"TARGET: {name!r} is none; must be one of {', '.join(targets())}")
        return _submit(name, own, after)
    except UsageError as error:
        print(f"submit.py {error}", file=sys.stderr)
        return WRONG


def _submit(name: str, own: Sequence[str], after: Sequence[str]) -> int:
    target = importlib.import_module(f"targets.{name}")
    parser = Parser(f"submit.py {name}", target.__doc__)
    add_shared(parser)
    target.add_options(parser)
    options = parser.read(own, name)
    run = Run.of(options, after, FOLDER.parent)
    if not options.dry_run:
        return target.submit(options, run)
    print(target.render(options, run), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
