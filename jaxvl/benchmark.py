"""Measure a checkpoint on standard benchmarks.

    python -m jaxvl.benchmark --workdir=runs/clip --root=/data/benchmarks

Looks through a local folder for benchmarks in the layouts that they are published in
(`jaxvl/evals/benchmarks`), and measures the newest checkpoint of a run, or weights of
`jaxvl.convert`, on each, on all devices there are. Nothing is downloaded. A set that cannot be read
is told with the reason, and the others go on.

Options:
  --workdir=FOLDER        of a training run or of converted weights
  --root=FOLDER           with the benchmarks, in folders of any names and depth
  --only=NAME,NAME        only these sets; `*` stands for anything: `--only='imagenet*,wds/vtab/*'`
  --language=LANG,LANG    only sets in these languages
  --list                  only say what is there; needs no --workdir
  --again                 measure sets anew that have results for the same weights, data and prompts
  --templates=NAME|FILE   prompts instead of those that a set brings: plain, imagenet80 … or a text
                          file, one a line
  --out=FOLDER            where results go (default: WORKDIR/benchmark): a JSON file for each set in
                          CLIP_benchmark's fields, and benchmarks.json with all of them
  --step=N                another checkpoint
  --config.mesh.AXIS=N    other devices per axis than in training
  --coordinator=HOST:PORT --processes=N --process=I    multi-host runs that the cluster does not
                                                       announce by itself
  --coordinator=auto      multi-host runs whose hosts JAX finds by itself (a TPU pod, say)

Exit status: 0 done, 1 no readable checkpoint, no benchmark, or one that could not be measured, 2
wrong option.
"""

from __future__ import annotations

import pathlib
import time
import zlib
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.command import run_command, start
from jaxvl.config import ConfigError, check, to_path
from jaxvl.data.class_sets import read_templates
from jaxvl.data.records import DataError, causes
from jaxvl.evals.benchmarks import results
from jaxvl.evals.benchmarks.base import Found
from jaxvl.evals.benchmarks.opening import agreed_open
from jaxvl.evals.benchmarks.scoring import prompts_of, score
from jaxvl.evals.benchmarks.search import Survey, survey
from jaxvl.evals.class_embeddings import ClassEmbeddings, weights_fingerprint
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import templates_of
from jaxvl.evals.result import EvaluatorError
from jaxvl.evals.shown import brief
from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.experiment import Command, parse_command
from jaxvl.training.programs import keep_programs
from jaxvl.training.restore import restore_encoders

MOST_TOLD = 20  # folders that are no benchmarks
OPTIONS = {
    "workdir": None,
    "root": None,
    "only": None,
    "language": None,
    "list": None,
    "again": None,
}
OPTIONS |= {"templates": None, "out": None, "step": None, **hosts.OPTIONS}


def benchmark(command: Command, console: Console) -> tuple[list[dict[str, Json]], dict[str, str]]:
    """Results of every chosen set, and why the others have none; the first process also writes
    them.

    Every process must make the call; each gets all results.

    Raises:
      ConfigError: a wrong option, or a model that does not compare images with texts.
      CheckpointError: no readable checkpoint.
      DataError: there is no benchmark.
    """
    workdir = to_path(command.options["workdir"], "--workdir")
    templates = _templates(command.options.get("templates"))
    there = _survey(command)
    chosen = _chosen(command, there)
    experiment, step, encoders = restore_encoders(
        workdir, command.options.get("step"), command.assignments
    )
    encoders.check_embeds()
    name = type(experiment.model).registered_name
    model = results.Model(
        name, f"{paths.absolute(workdir)}@{step}", weights_fingerprint(encoders.weights)
    )
    out = to_path(command.options.get("out", workdir / "benchmark"), "--out")
    if jax.process_index() == 0:
        paths.make_folder(out)
    run = _Run(encoders, model, out, templates, "again" in command.options, console)
    run.tell_unknown(there.unknown)
    done: list[dict[str, Json]] = []
    failed: dict[str, str] = {}
    for found in chosen:
        node, why = run.measure(found)
        if node is None:
            failed[found.key] = why
        else:
            done.append(node)
    if jax.process_index() == 0:
        not_recognised = {str(folder): why for folder, why in there.unknown}
        content = {"results": done, "not_measured": failed, "not_recognised": not_recognised}
        results.save(out / results.ALL, content)
    return done, failed


class _Run:
    """Measures sets with one model's weights.

    Args:
      out: folder of the results. templates: instead of each set's own; None: those.
      again: measure what has been measured.
    """

    def __init__(
        self,
        encoders: Encoders,
        model: results.Model,
        out: paths.Path,
        templates: tuple[str, ...] | None,
        again: bool,
        console: Console,
    ):
        self._encoders = encoders
        self._model = model
        self._out = out
        self._templates = templates
        self._again = again
        self._console = console
        self._class_vectors = ClassEmbeddings(encoders, model.weights, out / "classes")

    def tell_unknown(self, unknown: Sequence[tuple[pathlib.Path, str]]) -> None:
        """Says which folders are no benchmarks, and why."""
        for one in unknown[:MOST_TOLD]:
            self._say(f"not recognised: {_reason(*one)}", "dim")
        if len(unknown) > MOST_TOLD:
            self._say(
                f"not recognised: {len(unknown) - MOST_TOLD} more; --list has them all", "dim"
            )

    def measure(self, found: Found) -> tuple[dict[str, Json] | None, str]:
        """The result of a set, or why there is none."""
        opened, why = agreed_open(found)
        if opened is None:
            self._say(f"{found.key}: {why}", "yellow")
            return None, why
        prompts = prompts_of(opened, self._templates) if opened.classes else ()
        same = results.identity(opened, self._model, prompts)
        path = self._out / f"{found.key}.json"
        known = hosts.from_process_0(lambda: None if self._again else results.saved(path, same))
        if known is not None:
            self._say(f"{found.key}: measured before", "dim")
            return known, ""
        notes = f" ({'; '.join(opened.notes)})" if opened.notes else ""
        self._say(f"{found.key}: {len(opened.source)} pictures{notes} …")
        began = time.perf_counter()
        try:
            got = score(opened, self._encoders, self._class_vectors, self._templates)
        except (DataError, EvaluatorError, ConfigError) as error:
            self._say(f"{found.key}: {error}", "yellow")
            return None, str(error)
        if got.skipped:
            self._say(f"{found.key}: left out of it: {causes(got.skipped)}", "yellow")
        node = results.result(opened, got, self._model, same)
        node["jaxvl"]["seconds"] = round(time.perf_counter() - began, 3)
        node["jaxvl"]["folder"] = str(found.folder)
        if jax.process_index() == 0:
            results.save(path, node)
        return node, ""

    def _say(self, text: str, style: str = "") -> None:
        if jax.process_index() == 0:
            self._console.print(Text(brief(text), style=style), soft_wrap=True)


def _reason(folder: pathlib.Path, why: str) -> str:
    """Why a folder is no benchmark; reasons from a layout begin with the folder or a file in it."""
    return why if why.startswith(str(folder)) else f"{folder}: {why}"


def _survey(command: Command) -> Survey:
    root = to_path(command.options["root"], "--root")
    check(
        not paths.is_remote(root), "--root", f"{command.options['root']!r} must be a local folder"
    )
    check(root.is_dir(), "--root", f"{command.options['root']!r} is no folder")
    return survey(pathlib.Path(root))


def _chosen(command: Command, there: Survey) -> list[Found]:
    """The chosen sets, the same in every process. Raises DataError where there is none, or
    processes see different ones."""
    only, languages = (
        None if text is None else text.split(",")
        for text in map(command.options.get, ("only", "language"))
    )
    chosen = there.chosen(only, languages)
    keys = "\n".join(found.key for found in chosen)
    gathered = hosts.gather([zlib.crc32(keys.encode())])
    if len(set(gathered[:, 0].tolist())) > 1:
        raise DataError(f"{command.options['root']}: processes see different benchmarks in it")
    if not there.found:
        reasons = "; ".join(_reason(*one) for one in there.unknown[:MOST_TOLD])
        raise DataError(
            f"{command.options['root']}: holds no benchmark in a layout that is known ({reasons})"
        )
    if not chosen:
        names = ", ".join(sorted({found.name for found in there.found}))
        raise DataError(f"{command.options['root']}: no benchmark was chosen (there are: {names})")
    return chosen


def _templates(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    path = pathlib.Path(text)
    if not path.is_file():
        return templates_of(text, "--templates")
    try:
        return read_templates(path)
    except (OSError, ValueError) as error:
        raise ConfigError("--templates", str(error)) from None


def listing(there: Survey) -> Table:
    """What was found, and what was not recognised, with the reason."""
    table = Table(
        title="Benchmarks found", title_justify="left", header_style="bold", pad_edge=False
    )
    for name, style in (("benchmark", "cyan"), ("language", ""), ("layout", ""), ("folder", "dim")):
        table.add_column(name, style=style)
    for found in there.found:
        table.add_row(
            *(
                Text(brief(text))
                for text in (found.name, found.language, found.layout, str(found.folder))
            )
        )
    if there.unknown:
        table.add_section()
    for folder, why in there.unknown:
        table.add_row(
            Text("–"),
            Text(""),
            Text(brief(why.removeprefix(f"{folder}: ")), style="yellow"),
            Text(brief(str(folder))),
        )
    return table


def _run(argv: Sequence[str], console: Console) -> int:
    command = parse_command(argv, OPTIONS, flags=("list", "again"))
    check("root" in command.options, "--root", "is required; see python -m jaxvl.benchmark --help")
    if "list" in command.options:
        there = _survey(command)
        Console().print(listing(there))
        return 0 if there.found else 1
    check(
        "workdir" in command.options,
        "--workdir",
        "is required; see python -m jaxvl.benchmark --help",
    )
    hosts.initialise(command.options)
    keep_programs()
    done, failed = benchmark(command, console)
    if jax.process_index() == 0:
        _show(done, failed)
    return 1 if failed else 0


def _show(done: list[Mapping[str, Json]], failed: Mapping[str, str]) -> None:
    console = Console()
    console.print(results.table(done))
    if failed:
        console.print(results.failures(failed))


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (CheckpointError, DataError, paths.PathError), logging.ERROR)


if __name__ == "__main__":
    start(main, __doc__)
