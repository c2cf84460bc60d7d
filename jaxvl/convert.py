"""Take weights from one library to another.

    python -m jaxvl.convert --from=hf:PATH --to=jaxvl:runs/clip --check

PLACES, for --from and --to
  hf:FOLDER               Hugging Face transformers: CLIPModel, SiglipModel, Siglip2Model (of one
                          resolution), AlignModel
  open_clip:FOLDER        open_clip_config.json and its weights: CLIP, SigLIP, CoCa
  big_vision:FILE.npz     SigLIP
  jaxvl:WORKDIR           of a run, or for jaxvl.evaluate, jaxvl.caption and
                          --config.start=WORKDIR; lora is merged

The tokenizer and the preprocessing go with the weights; one that does not fit the model is refused.
Files of code are never run.

Options:
  --tokenizer=FOLDER      its files, where they do not lie beside the weights; `none`: go on without
  --step=N                another checkpoint of a jaxvl workdir
  --weights=NAME          of a run other weights than those that its evaluation uses: `parameters`,
                          or one of its averages (`optim.ema`) by name
  --plugins=PLACE         of a run's own files that lie elsewhere now, or `recorded`, see
                          jaxvl/config/plugins.py
  --check                 build the peers' models from what was read and written, run them and ours
                          on the same inputs, and print the largest difference of every output

Exit status: 0 done, 1 refused, damaged or beyond 1e-4 in --check, 2 wrong option.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from absl import logging
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxvl import paths
from jaxvl.command import run_command, start
from jaxvl.config import check, nearest, to_path
from jaxvl.interop.bundle import Bundle
from jaxvl.interop.check import LIMIT, Difference, check_arrays, check_hf, check_open_clip
from jaxvl.interop.libraries import LIBRARIES
from jaxvl.interop.mapping import ConversionError
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.weights import load_weights, save_weights

PLACES = (*LIBRARIES, "jaxvl")
OPTIONS = ("from", "to", "tokenizer", "step", "weights", "plugins", "check")
Place = tuple[str, paths.Path]


def parse(argv: Sequence[str]) -> dict[str, str]:
    """Options of the command (`--OPTION VALUE` as well). Raises ConfigError."""
    options = {}
    words = list(argv)
    while words:
        name, has_value, value = words.pop(0).partition("=")
        check(name.startswith("--"), name, f"is not an option (options: --{', --'.join(OPTIONS)})")
        name = name[2:]
        check(
            name in OPTIONS,
            f"--{name}",
            f"unknown option{nearest(name, OPTIONS)} (options: --{', --'.join(OPTIONS)})",
        )
        if name != "check" and not has_value:
            check(bool(words) and not words[0].startswith("--"), f"--{name}", "needs a value")
            value = words.pop(0)
        options[name] = value
    for name in ("from", "to"):
        check(name in options, f"--{name}", "is required; see python -m jaxvl.convert --help")
    return options


def place(option: str, text: str) -> Place:
    """`LIBRARY:PATH`. Raises ConfigError."""
    library, _, path = text.partition(":")
    known = ", ".join(f"{name}:PATH" for name in PLACES)
    check(
        library in PLACES and bool(path),
        option,
        f"{text!r} must be one of {known}{nearest(library, PLACES)}",
    )
    local = library != "jaxvl"
    check(
        not (local and paths.is_remote(path)),
        option,
        f"{text!r}: files of {library} are read and written in local folders only",
    )
    return library, to_path(path, option).expanduser()


def load(
    source: Place,
    tokenizer: str | None,
    step: str | None,
    plugins: str | None = None,
    weights: str | None = None,
) -> Bundle:
    """Raises ConversionError for what cannot be taken over, CheckpointError where a workdir has
    nothing to read."""
    library, path = source
    if not paths.exists(path):
        raise ConversionError(f"{path}: no such file or folder")
    if library != "jaxvl":
        of_runs = {"--step": step, "--plugins": plugins, "--weights": weights}
        for option, given in of_runs.items():
            check(given is None, option, "is of a jaxvl workdir")
        return LIBRARIES[library].load(path, tokenizer)
    return load_weights(path, step, plugins, weights)


def save(bundle: Bundle, target: Place) -> tuple[str, ...]:
    """Writes; returns what is to be told. Raises ConversionError for what the target has no place
    for."""
    library, path = target
    if library != "jaxvl":
        return LIBRARIES[library].save(bundle, path)
    save_weights(bundle, path)
    return ()


def compare(bundle: Bundle, source: Place, target: Place) -> list[tuple[str, list[Difference]]]:
    """(what was compared, differences) of the peers of both sides, and of our own arrays read again
    from the target."""
    peers: dict[str, Callable[[Bundle, paths.Path], list[Difference]]] = {
        "hf": check_hf,
        "open_clip": check_open_clip,
    }
    rows = [
        (f"{library}:{path}", peers[library](bundle, path))
        for library, path in (source, target)
        if library in peers
    ]
    again = load(
        target, "none" if target[0] == "big_vision" or bundle.tokenizer is None else None, None
    )
    return [*rows, (f"{target[0]}:{target[1]}", check_arrays(bundle, again))]


def report(console: Console, compared: list[tuple[str, list[Difference]]]) -> bool:
    """Prints the table; returns whether all is within the limit."""
    table = Table("against", "output", "shape", "largest difference")
    for where, rows in compared:
        for i, row in enumerate(rows):
            colour = "green" if row.largest <= LIMIT else "bold red"
            table.add_row(
                escape(where) if i == 0 else "",
                row.output,
                str(list(row.shape)),
                f"[{colour}]{row.largest:.2e}[/]",
            )
    console.print(table)
    return all(row.largest <= LIMIT for _, rows in compared for row in rows)


def convert(argv: Sequence[str], console: Console) -> int:
    """Exit status. Raises ConfigError, ConversionError, CheckpointError."""
    options = parse(argv)
    source = place("--from", options["from"])
    target = place("--to", options["to"])
    if options.get("tokenizer") == "none":
        console.print(
            "[yellow]without the tokenizer[/]: what is written takes token ids, not texts",
            soft_wrap=True,
        )
    of_run = {name: options.get(name) for name in ("step", "plugins", "weights")}
    bundle = load(source, options.get("tokenizer"), **of_run)
    if options.get("tokenizer") is not None and source[0] == "jaxvl":
        check(
            options["tokenizer"] == "none", "--tokenizer", "a workdir has its own; can be none only"
        )
        bundle = Bundle(
            bundle.model,
            bundle.inputs,
            bundle.arrays,
            None,
            bundle.preprocess,
            bundle.origin,
            bundle.notes,
        )
    for note in (*bundle.notes, *save(bundle, target)):
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    count = sum(array.size for array in bundle.arrays.values())
    console.print(
        f"{count:,} parameters of {bundle.model.registered_name} written to "
        f"{escape(str(target[1]))}",
        soft_wrap=True,
    )
    return 0 if "check" not in options or report(Console(), compare(bundle, source, target)) else 1


def main(argv: Sequence[str]) -> int:
    # OSError: a target that cannot be written
    return run_command(convert, argv, (ConversionError, CheckpointError, OSError), logging.ERROR)


if __name__ == "__main__":
    start(main, __doc__)
