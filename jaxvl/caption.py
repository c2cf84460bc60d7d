"""Write captions of pictures: `python -m jaxvl.caption --workdir=runs/coca_emoji IMAGE_OR_FOLDER…`.

Prints one line per picture, its path and caption with a tab between. Folders are searched for
pictures; one that cannot be read is told, left out and counted. On several hosts the same command
runs on each, and all of them see the run and the pictures; the first one prints.

Options:
  --workdir=FOLDER        of a training run of a model that writes (coca)
  --step=N                another of its checkpoints
  --checkpoint=FOLDER     one of its checkpoints, WORKDIR/checkpoints/N, instead of the two
  --plugins=PLACE         of the run's own files that lie elsewhere now, or `recorded`, see
                          jaxvl/config/plugins.py
  --json                  lines of JSON instead: {"path": …, "caption": …}, or {"path": …, "error":
                          …}
  --KEY=VALUE             how captions are written: method (greedy, sample, beam), beams,
                          temperature, top_k, top_p, seed, max_length, min_length, length_penalty,
                          repetition_penalty, no_repeat (see jaxvl/models/generate.py)
  --coordinator=HOST:PORT --processes=N --process=I    multi-host runs that the cluster does not
                                                       announce by itself
  --coordinator=auto      multi-host runs whose hosts JAX finds by itself (a TPU pod, say)

Exit status: 0 done, 1 no readable checkpoint, or no picture that can be read, 2 wrong option.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence

import jax
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from jaxvl import paths
from jaxvl.command import run_command, start
from jaxvl.config import check, override, resolve, to_path
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Record
from jaxvl.evals.encoders import Encoders
from jaxvl.models.generate import Generation
from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.experiment import parse_command
from jaxvl.training.programs import keep_programs
from jaxvl.training.restore import restore_encoders

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
HELP = "see python -m jaxvl.caption --help"


def pictures(texts: Sequence[str]) -> Iterator[paths.Path]:
    """Files as given, and those of folders that are named like pictures. Raises ConfigError for a
    path that is not there."""
    for text in texts:
        path = to_path(text, "IMAGE")
        check(paths.exists(path), text, "is not there; must be a picture or a folder")
        if paths.is_folder(path):
            yield from (file for file in paths.files_below(path) if file.suffix.lower() in SUFFIXES)
        else:
            yield path


def parse(argv: Sequence[str]) -> tuple[dict[str, str], Generation, tuple[str, ...]]:
    """(options of the command, how to write, paths). Raises ConfigError."""
    how = [f.name for f in dataclasses.fields(Generation)]
    known = dict.fromkeys(
        ("workdir", "step", "checkpoint", "plugins", "json", *how, *hosts.OPTIONS)
    )
    command = parse_command(argv, known, flags=["json"], words="pictures", config=False)
    options = dict(command.options)
    images = command.words
    if "checkpoint" in options:
        folder = paths.absolute(to_path(options["checkpoint"], "--checkpoint"))
        fits = folder.parent.name == "checkpoints" and folder.name.isdigit()
        check(
            fits,
            "--checkpoint",
            f"{str(folder)!r} is not named like a checkpoint of a run: WORKDIR/checkpoints/N",
        )
        check(
            "workdir" not in options and "step" not in options,
            "--checkpoint",
            "stands for --workdir and --step; give it or these",
        )
        options |= {"workdir": str(folder.parent.parent), "step": folder.name}
    check("workdir" in options, "--workdir", f"is required; {HELP}")
    check(bool(images), "IMAGE", f"no picture and no folder given; {HELP}")
    return (
        options,
        resolve(
            Generation,
            override(ConfigDict(), {name: options[name] for name in how if name in options}),
        ),
        images,
    )


def restore(options: dict[str, str]) -> Encoders:
    """Raises ConfigError for a model that writes nothing, CheckpointError where there is no
    readable checkpoint."""
    workdir = to_path(options["workdir"], "--workdir")
    assignments = {key: options[key] for key in ("plugins",) if key in options}
    experiment, _, encoders = restore_encoders(workdir, options.get("step"), assignments)
    model = experiment.model
    check(
        model.capabilities().generates,
        "--workdir",
        f"the model of {workdir} is {model.registered_name!r}, which writes no captions; coca does",
    )
    return encoders


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (CheckpointError, paths.PathError), logging.ERROR)


def _run(argv: Sequence[str], console: Console) -> int:
    options, how, images = parse(argv)
    files = list(pictures(images))
    hosts.initialise(options)
    keep_programs()
    first_process = jax.process_index() == 0
    encoders = restore(options)
    lines = options.get("json", "false") == "true"
    written = 0
    firsts = range(0, len(files), encoders.batch)
    live = first_process and len(firsts) > 1 and console.is_terminal
    for first in track(firsts, "captions", console=console, transient=True, disable=not live):
        part = files[first : first + encoders.batch]
        texts, encoded = encoders.captions(_Files(part), how, first=first)
        said = dict(zip(encoded.index.tolist(), texts))
        written += len(said)
        for i, file in enumerate(part if first_process else []):
            report(console, file, said.get(i), lines)
    if first_process and written < len(files):
        console.print(
            f"{written} of {len(files)} pictures captioned, {len(files) - written} left out"
        )
    return 0 if written else 1


class _Files:
    """Pictures as the encoders read them: a file's bytes are read when they are wanted, in the
    encoders' threads."""

    def __init__(self, files: Sequence[paths.Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source.read`; there is no column but `image`."""
        del columns
        try:
            return {"image": paths.read_bytes(self._files[i])}
        except OSError as error:
            raise BadRecord("record cannot be read", str(error)) from None


def report(console: Console, file: paths.Path, text: str | None, lines: bool) -> None:
    """One picture's line; `text`: its caption, or None where it could not be read."""
    if text is None:
        console.print(
            f"[yellow]left out[/] {escape(str(file))}: not a picture that can be read",
            soft_wrap=True,
        )
    if lines:
        found = {"error": "not a picture that can be read"} if text is None else {"caption": text}
        print(json.dumps({"path": str(file), **found}, ensure_ascii=False))
    elif text is not None:
        print(f"{file}\t{text}")


if __name__ == "__main__":
    start(main, __doc__)
