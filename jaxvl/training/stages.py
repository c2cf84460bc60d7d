"""A run of several stages, one after the other, each a run of its own in `WORKDIR/NAME`.

    c = ConfigDict(dict(model=…, tasks=…, optim=…, evals=…))        # what the stages share
    c.stages = (
        dict(name="one", steps=1000, after=dict(clusters=dict(name="kmeans", k=10))),
        dict(name="two", steps=500, optim=dict(lr=1e-4), tasks=dict(pairs=dict(data=dict(
            tables=dict(clusters="{stages.one}/tables/clusters"),
            sampler=dict(name="per_cluster", table="clusters"))))),
    )

A stage is the shared config with the stage's keys in it, group by group. A group that chooses
another component by `name` takes the shared one's place. None takes a group away, or an entry of
`objectives` or `before`.
A stage starts with the weights of the one before; one that says what it starts with (`start`;
(): fresh weights) starts with that. In any text, `{stages.NAME}` stands for the work folder of an
earlier stage. On the command line, `--config.stages.NAME.KEY=VALUE` is a key of a stage.

Killed at any moment, the same command goes on where the run was, and every number comes out the
same: a stage is resumed as any run is, a job that was cut short begins anew, and a stage begins
once the one before it is done. `WORKDIR/stages.json` holds the last figures of the stages that are
done, in their order, so that what a later stage has forgotten can be told (`recorded_stages`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxvl import paths
from jaxvl.aliases import Json, Leaf, Node
from jaxvl.config import ConfigError, check, load_file, nearest, override, resolve, to_dict
from jaxvl.config.schema import plain_dict
from jaxvl.data.tables import read_table
from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import CheckpointError, Checkpoints
from jaxvl.training.experiment import Command, Experiment
from jaxvl.training.figures import read_figures
from jaxvl.training.resume import check_resumable
from jaxvl.training.run import EvaluationError

STARTS = ("start", "init_from")  # keys that say what a stage begins with, the older one too
OWN = ("name",)  # keys of a stage that are not of its experiment
REFERENCE = re.compile(r"\{stages\.([^{}]*)\}")
RECORD = "stages.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
      name: empty for the only stage of a run without `stages`.
      workdir: of the stage.
    """

    name: str
    experiment: Experiment
    workdir: paths.Path


class Train(Protocol):
    """`train.train`: trains one stage, or goes on with it."""

    def __call__(
        self,
        experiment: Experiment,
        workdir: paths.Path,
        console: Console | None = None,
        profile: str | None = None,
        stop: hosts.StopSignal | None = None,
    ) -> dict[str, float]: ...


# --------------------------------------------------------------------------------------------------
# From a config to stages


def stages_of(command: Command, workdir: paths.Path) -> list[Stage]:
    """The stages of a command's config; a config without `stages` is the only one.

    Raises:
      ConfigError: for whatever is wrong with one of them, under `stages.NAME`.
    """
    node = load_file(command.config)
    if not node.get("stages"):
        return [Stage("", command.experiment(), workdir)]
    shared = {key: value for key, value in plain_dict(node, "").items() if key != "stages"}
    of_stages = {k: v for k, v in command.assignments.items() if k.startswith("stages.")}
    of_all = {k: v for k, v in command.assignments.items() if k not in of_stages}
    shared = plain_dict(override(ConfigDict(shared), of_all), "")
    named = _named(node["stages"])
    for key, text in of_stages.items():
        name, _, rest = key.removeprefix("stages.").partition(".")
        check(name in named and bool(rest), f"--config.{key}", _no_stage(name, list(named)))
        named[name] = plain_dict(override(ConfigDict(named[name]), {rest: text}), "")
    return build_stages(shared, named, workdir)


def one_of(command: Command, name: str | None) -> Experiment:
    """The experiment of a command that is about one stage: the one that is named, where the config
    has stages. Raises ConfigError at `--stage`."""
    stages = {stage.name: stage for stage in stages_of(command, paths.as_path("."))}
    names = list(stages)
    if name is None and names == [""]:
        return stages[""].experiment
    problem = f"is required, as the config has stages: {', '.join(names)}"
    check(name is not None, "--stage", problem)
    check(name in stages, "--stage", _no_stage(name, [n for n in names if n]))
    return stages[name].experiment


def build_stages(shared: Node, named: Mapping[str, Node], workdir: paths.Path) -> list[Stage]:
    """Stages from the config that they share and the keys of each.

    Raises ConfigError under `stages.NAME`.
    """
    stages: list[Stage] = []
    for name, own in named.items():
        whole = dict(shared)
        if stages and not any(key in own for key in STARTS):
            whole = {key: value for key, value in shared.items() if key not in STARTS}
            whole["start"] = str(stages[-1].workdir)
        elif stages:
            whole = {key: value for key, value in shared.items() if key not in STARTS}
        folders = {stage.name: str(stage.workdir) for stage in stages}
        try:
            node = with_folders(merged(whole, own), folders)
            stages.append(Stage(name, resolve(Experiment, node), workdir / name))
        except ConfigError as error:
            raise error.under(f"stages.{name}") from None
    return stages


def _named(nodes: Leaf) -> dict[str, dict[str, Leaf]]:
    """Name -> keys of each stage, in order. Raises ConfigError."""
    check(isinstance(nodes, Sequence), "stages", "must be a list of groups, each with a 'name'")
    named: dict[str, dict[str, Leaf]] = {}
    for i, node in enumerate(nodes):
        key = f"stages[{i}]"
        own = plain_dict(node, key) if isinstance(node, ConfigDict) else node
        check(isinstance(own, Mapping), key, "must be a group of keys")
        name = own.get("name")
        fits = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) is not None
        check(fits and "." not in name, f"{key}.name", f"{name!r} must be letters, digits, _ and -")
        check(name not in named, f"{key}.name", f"{name!r} is the name of two stages")
        named[name] = {key: value for key, value in own.items() if key not in OWN}
    return named


def merged(shared: Node, own: Node, entries: bool = False) -> dict[str, Leaf]:
    """The shared config with a stage's keys in it; see the module's text. `entries`: of what None
    takes away, whether it is a group or not."""
    out = dict(shared)
    for key, value in own.items():
        there = out.get(key)
        if value is None and (isinstance(there, Mapping) or entries):
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(there, Mapping):
            other = "name" in value and value["name"] != there.get("name")
            own_entries = key in ("objectives", "before")
            out[key] = dict(value) if other else merged(there, value, own_entries)
        else:
            out[key] = value
    return out


def with_folders(node: Leaf, folders: Mapping[str, str]) -> Leaf:
    """A config whose texts have the work folders of stages in the place of `{stages.NAME}`."""
    if isinstance(node, Mapping):
        return {key: with_folders(value, folders) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return tuple(with_folders(value, folders) for value in node)
    if not isinstance(node, str):
        return node

    def folder(found: re.Match) -> str:
        name = found[1]
        check(name in folders, found[0], _no_stage(name, list(folders), "earlier "))
        return folders[name]

    return REFERENCE.sub(folder, node)


def _no_stage(name: str, known: list[str], which: str = "") -> str:
    there = ", ".join(known) or "none"
    return f"{name!r} is no {which}stage{nearest(name, known)} ({which}stages: {there})"


# --------------------------------------------------------------------------------------------------
# Running them


def train_stages(
    stages: Sequence[Stage],
    train: Train,
    workdir: paths.Path,
    console: Console | None = None,
    profile: str | None = None,
    stop: hosts.StopSignal | None = None,
) -> dict[str, float]:
    """Trains the stages that are not done; returns the last figures of the last one that ran.

    Args:
      train: trains one stage.
      workdir: of the whole run.
      profile: steps to trace, of each stage that trains.
      stop: is `obeyed` afterwards where stages are left; None: one of its own.

    Raises:
      EvaluationError: all stages are done and saved, but evaluators failed in some.
    """
    stop = stop or hosts.StopSignal()
    failed: dict[str, str] = {}
    latest: dict[str, float] = {}
    for stage in stages:
        last = stage is stages[-1]  # it is opened in any case, to see that it can be read
        if last or not hosts.gather([is_done(stage)]).all():
            if stage.name and console is not None and jax.process_index() == 0:
                console.print(f"stage {stage.name} in {stage.workdir}")
            try:
                latest = train(stage.experiment, stage.workdir, console, profile, stop)
            except EvaluationError as error:
                failed |= {f"{stage.name}/{name}": why for name, why in error.failed.items()}
                latest = error.latest
            if hosts.gather([stop.name is not None]).any():
                stop.obeyed = stop.obeyed or not last
                break
        if stage.name and jax.process_index() == 0:
            _record(stage, workdir)
    if failed:
        raise EvaluationError(failed, latest)
    return latest


def is_done(stage: Stage) -> bool:
    """Whether nothing is left to do in a stage: it is trained, evaluated, and its jobs are done.

    Raises ConfigError where its folder holds another run.
    """
    experiment = stage.experiment
    folder = stage.workdir / "checkpoints"
    if not paths.is_folder(folder):
        return False
    try:
        _, frame = Checkpoints(folder, read_only=True).frame()
    except CheckpointError:
        return False
    try:
        check_resumable(experiment, None, frame)
    except ConfigError as error:
        raise error.under(f"stages.{stage.name}") from None
    if frame["step"] < experiment.steps:
        return False
    for name, job in experiment.after.items():
        table = read_table(stage.workdir / "tables" / name, experiment.steps)
        made_by = json.loads(json.dumps(to_dict(job)))
        if table is None or table.step != experiment.steps or table.made_from["job"] != made_by:
            return False
    return experiment.evals.keys() <= _last_figures(stage).keys()


def _last_figures(stage: Stage) -> dict[str, dict[str, float]]:
    """Evaluator -> its figures with the stage's last weights."""
    last = stage.experiment.steps
    read = read_figures(stage.workdir, until=last)
    return {name: figures for step, name, figures in read if step == last}


def _record(stage: Stage, workdir: paths.Path) -> None:
    """Puts a stage's last figures into `stages.json`."""
    figures = {
        f"{name}/{metric}": value
        for name, of_evaluator in _last_figures(stage).items()
        for metric, value in of_evaluator.items()
    }
    record = {"stage": stage.name, "step": stage.experiment.steps, "figures": figures}
    records = recorded_stages(workdir)
    places = [i for i, earlier in enumerate(records) if earlier["stage"] == stage.name]
    if places:
        records[places[0]] = record
    else:
        records.append(record)
    paths.write_text(workdir / RECORD, json.dumps(records, indent=1))


def recorded_stages(workdir: paths.Path) -> list[dict[str, Json]]:
    """What `stages.json` holds, in the order of the stages: `stage`, `step`, and `figures`,
    `EVALUATOR/METRIC` -> value with the stage's last weights. Empty where there is none."""
    path = workdir / RECORD
    return json.loads(paths.read_text(path)) if paths.is_file(path) else []
