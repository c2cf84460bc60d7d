"""Write captions of pictures: `python -m jaxvl.caption --workdir=runs/coca_emoji IMAGE_OR_FOLDER…`.

Prints one line per picture, its path and caption with a tab between. Folders are searched for pictures; one that cannot be read is
told and left out.

Options:
  --workdir=FOLDER        of a training run of a model that writes (coca)
  --step=N                another of its checkpoints
  --KEY=VALUE             how captions are written: method (greedy, sample, beam), beams, temperature, top_k, top_p, max_length,
                          min_length, length_penalty, repetition_penalty (see jaxvl/models/generate.py)

Exit status: 0 done, 1 no readable checkpoint, or no picture that can be read, 2 wrong option.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

from absl import logging
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from jaxvl.config import ConfigError, check, nearest, resolve
from jaxvl.models.generate import Generation
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.setup import restore_encoders

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def pictures(paths: Sequence[str]) -> Iterator[pathlib.Path]:
    """Files as given, and those of folders that are named like pictures. Raises ConfigError for a path that is not there."""
    for path in map(pathlib.Path, paths):
        check(path.exists(), str(path), "is not there; must be a picture or a folder")
        yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]


def parse(argv: Sequence[str]) -> tuple[dict[str, str], Generation, list[str]]:
    """(options of the command, how to write, paths). Raises ConfigError."""
    known = ["workdir", "step", *(f.name for f in dataclasses.fields(Generation))]
    options, how, paths = {}, {}, []
    for word in argv:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            paths.append(word)
        elif name in ("workdir", "step"):
            options[name] = value
        else:
            check(name in known, f"--{name}", f"unknown option{nearest(name, known)} (options: {', '.join(known)})")
            try:
                how[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                how[name] = value
    check("workdir" in options, "--workdir", "is required; see python -m jaxvl.caption --help")
    check(bool(paths), "IMAGE", "no picture and no folder given; see python -m jaxvl.caption --help")
    return options, resolve(Generation, how), paths


def main(argv: Sequence[str]) -> int:
    console = Console(stderr=True)
    logging.set_verbosity(logging.ERROR)
    try:
        options, how, paths = parse(argv)
        files = list(pictures(paths))
        _, _, encoders = restore_encoders(pathlib.Path(options["workdir"]), options.get("step"))
        written = 0
        parts = [files[i : i + encoders.batch] for i in range(0, len(files), encoders.batch)]
        for part in track(parts, "captions", console=console, transient=True, disable=len(parts) < 2 or not console.is_terminal):
            texts, encoded = encoders.captions([{"image": file.read_bytes()} for file in part], how)
            said = dict(zip(encoded.index.tolist(), texts))
            for i, file in enumerate(part):
                if i in said:
                    print(f"{file}\t{said[i]}")
                else:
                    console.print(f"[yellow]left out[/] {escape(str(file))}: not a picture that can be read", soft_wrap=True)
            written += len(said)
    except ConfigError as error:
        console.print(f"[bold red]wrong option[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except CheckpointError as error:
        console.print(f"[bold red]{type(error).__name__}[/] {escape(str(error))}", soft_wrap=True)
        return 1
    return 0 if written else 1


if __name__ == "__main__":
    if "--help" in sys.argv or "-h" in sys.argv:
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
