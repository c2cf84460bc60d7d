"""Whether a run may go on from the checkpoint in its workdir, and where in its data it does.

A run that is resumed is the run that was never stopped. So its config must be the checkpoint's, but
for options that change no number of the training. `resume.accept` names options whose new value is
wanted all the same: it holds from the checkpoint's step on.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping

from jaxvl.aliases import Json, Leaf, Node
from jaxvl.config import ConfigError, check, resolve, to_dict
from jaxvl.data.preprocess import Preprocess
from jaxvl.training.checkpoint import Frame, OtherState
from jaxvl.training.experiment import Experiment
from jaxvl.training.older import is_older, present_config

# Options that change no number of the training, or none beyond rounding (`mesh`, `deterministic`,
# what a model's layers are run by).
FREE = (
    "after.*",  # what a job makes is compared where a task reads it
    "checkpoint.*",
    "compiler",
    "deterministic",
    "evals.*",
    "guard.reports",
    "guard.rollback",
    "guard.stop_after",
    "fresh",  # the run has begun
    "start",
    "log.*",
    "mesh.*",
    "model.*.attention",
    "model.*.remat",
    "model.*.scan",
    "plugins",
    "resume.*",
    "tasks.*.collective",
    "tasks.*.data.error_budget",
    "tasks.*.data.error_minimum",
    "tasks.*.data.reader.*",
    "tasks.*.data.tables.*",  # a table may be moved; its content is compared (`Feed.identity`)
    "tokenizer.*",  # compared by what it does, not by how it was made
)
# Follow from the devices that there are, where `resume.devices` is given there and here.
ELASTIC = ("tasks.*.microbatches",)
# Another model, whatever is accepted: the weights would mean something else.
FIXED = ("adapters.*", "model.*", "preprocess.*")
_OLDER = (
    "holds a run of an earlier version, which drew records in another order and named a "
    "corpus where tasks name a source now, "
    "so it cannot go on; choose another, and config.start=FOLDER to start from its weights"
)
_OTHER = "choose another --workdir, or the old config"


def check_resumable(experiment: Experiment, tokenizer: str | None, frame: Frame) -> None:
    """Refuses a checkpoint that this run cannot continue exactly, unless `resume.accept` says so.

    Args:
      experiment: of this run.
      tokenizer: of this run, as `Tokenizer.to_json` gives it; None leaves it unchecked.
      frame: of the checkpoint.

    Raises:
      ConfigError: naming the option, both values and what can be done.
    """
    if frame.get("weights_only"):
        problem = (
            "holds converted weights, not a run; choose another, and config.start=FOLDER to "
            "start from them"
        )
        raise ConfigError("--workdir", problem)
    check(not is_older(frame["config"]), "--workdir", _OLDER)
    changed = changes(frame["config"], experiment)
    for key, (there, here) in changed.items():
        check(
            not _matches(key, FIXED) or _matches(key, FREE),
            key,
            f"differs from the checkpoint in the workdir ({there!r} there, {here!r} here); "
            f"{_OTHER}",
        )
    if tokenizer is not None:
        check(
            frame["tokenizer"] == tokenizer,
            "tokenizer",
            f"differs from that of the checkpoint in the workdir; {_OTHER}",
        )
    same_pictures = Preprocess.from_json(frame["preprocess"]) == experiment.preprocess
    check(
        same_pictures, "preprocess", f"differs from that of the checkpoint in the workdir; {_OTHER}"
    )
    free = FREE
    if experiment.resume.devices and frame["config"].get("resume", {}).get("devices"):
        free += ELASTIC
    for key, (there, here) in changed.items():
        if not (_matches(key, free) or _accepted(key, experiment)):
            raise ConfigError(key, _refusal(key, there, here, frame["step"]))


def _refusal(key: str, there: Json, here: Json, step: int) -> str:
    return (
        f"{there!r} in the checkpoint of step {step} in the workdir, {here!r} here, so the "
        f"run could not go on "
        f"exactly; set it back, or resume.accept=({key!r},) to take the new value from this "
        f"step on, "
        "or choose another --workdir (start=OLD starts there with these weights)"
    )


def check_data(experiment: Experiment, ours: Mapping[str, Json], frame: Frame) -> None:
    """Refuses a checkpoint whose tasks read other records than this run's, under the same config.

    Args:
      ours: task -> what identifies its records, as `Run.frame` saves it in `data`.

    Raises:
      ConfigError: as `check_resumable`.
    """
    for task, there in frame.get("data", {}).items():
        key = f"tasks.{task}.data"
        here = json.loads(json.dumps(ours.get(task)))
        if here is not None and here != there and not _accepted(key, experiment):
            raise ConfigError(key, _refusal(key, there, here, frame["step"]))


def explain(error: OtherState, experiment: Experiment, frame: Frame) -> ConfigError:
    """Which accepted option made the state another one."""
    changed = changes(frame["config"], experiment)
    kept = {k: v for k, v in changed.items() if _accepted(k, experiment)}
    if not kept:
        return ConfigError("--workdir", f"{error}; {_OTHER}")
    key, (there, here) = next(iter(kept.items()))
    problem = (
        f"{there!r} in the checkpoint, {here!r} here, which changes what the state holds "
        f"({error}); it cannot be "
        "accepted: set it back, or choose another --workdir (start=OLD starts there "
        "with these weights)"
    )
    return ConfigError(key, problem)


def changes(saved: Node, experiment: Experiment) -> dict[str, tuple[Json, Json]]:
    """Key -> (value in the saved config, value in this run's), of all that differ.

    Options that the saved config does not know yet have their default there.
    """
    try:
        there = _flat(
            to_dict(resolve(Experiment, {**present_config(saved), "plugins": experiment.plugins}))
        )
    except ConfigError as error:
        raise ConfigError(error.key, f"of the checkpoint in the workdir: {error.problem}") from None
    here = _flat(to_dict(experiment))
    keys = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
    return {k: (there.get(k), here.get(k)) for k in keys}


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _accepted(key: str, experiment: Experiment) -> bool:
    """Whether `resume.accept` names the key or a group that it is in."""
    return any(key == name or key.startswith(f"{name}.") for name in experiment.resume.accept)


def _flat(config: Leaf, path: str = "") -> dict[str, Json]:
    """Dotted key -> value, as JSON has it; lists are values."""
    if not isinstance(config, Mapping):
        return {path: json.loads(json.dumps(config))}
    flat: dict[str, Json] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat
