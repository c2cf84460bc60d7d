"""Configs and checkpoints of earlier versions.

Some had tasks and evaluators that named a corpus and a split, where they name a source and fields
now. Their records came in another order, so such a run cannot go on. Its weights, tokenizer and
preprocessing are read as ever; so are those of runs whose objectives named a judge, where the run
names teachers now. Some had models with an option `lock`, which `optim.freeze` stands for now, or a
`coca` with options of what is `open_clip_coca` now; such a run goes on. `init_from` is now a rule
of `start`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from jaxvl import paths
from jaxvl.aliases import Node
from jaxvl.config import check
from jaxvl.models.open_clip_coca import renamed
from jaxvl.sharding.mesh import replicated
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.state import GuardState, TrainState


class OlderRunWarning(UserWarning):
    """Parts of an older run's config are left out."""


def with_start(node: Node) -> Node:
    """A config with `init_from=WORKDIR` as one with `start`; any other as it is.

    Raises ConfigError for one with both.
    """
    if "init_from" not in node:
        return node
    node = dict(node)
    workdir = node.pop("init_from")
    if workdir is None:
        return node
    check(
        not node.get("start"), "init_from", "stands beside start, which replaces it; leave it out"
    )
    return {**node, "start": (dict(source=workdir),)}


def is_older(config: Node) -> bool:
    """Whether a recorded config is one of these."""
    tasks = config.get("tasks", {}).values()
    parts = [*(task.get("data", {}) for task in tasks), *config.get("evals", {}).values()]
    uses = [use for task in tasks for use in task.get("objectives", {}).values()]
    judged = any(isinstance(use, Mapping) and "judge" in use.get("objective", use) for use in uses)
    return judged or any("corpus" in part for part in parts)


def weights_config(config: Node, folder: paths.Path) -> Node:
    """What a recorded config says of the weights; of an older one without tasks and evaluators,
    with a warning.

    Args:
      config: of the checkpoint's frame.
      folder: of the run, for the warning.
    """
    config = present_config(config)
    if not is_older(config):
        return config
    evals = ", ".join(config.get("evals", {})) or "none"
    warnings.warn(
        f"{folder} is a run of an earlier version: its tasks, and its evaluators ({evals}), "
        f"are left out; "
        "evaluators can be named anew, as --config.evals.NAME.name=zero_shot "
        "--config.evals.NAME.source.name=…",
        OlderRunWarning,
        stacklevel=2,
    )
    lengths = [
        config.get("text_length") or 0,
        *(_tokens(task["data"]) for task in config.get("tasks", {}).values()),
    ]
    return {**config, "tasks": {}, "evals": {}, "text_length": max(lengths)}


def present_config(config: Node) -> Node:
    """A recorded config in today's terms; itself where that changes nothing.

    The models' option `lock` becomes `optim.freeze`. For `coca` see `open_clip_coca.renamed`.

    Raises ConfigError for a model that is no longer there.
    """
    if "model" not in config:
        return config
    model = renamed(config["model"])
    if "lock" not in model:
        return config if model == config["model"] else {**config, "model": model}
    locked = model.pop("lock")
    optim = dict(config.get("optim", {}))
    if locked != "none":
        patterns = [optim.get("freeze"), f"^{locked}/encoder/"]
        optim["freeze"] = "|".join(pattern for pattern in patterns if pattern)
    return {**config, "model": model, "optim": optim}


def _tokens(data: Node) -> int:
    """Tokens of a row of an older task's data."""
    return data.get("row_length") or data.get("images_per_row", 1) * data.get("text_length", 64)


def with_saved_tasks(
    abstract: TrainState, checkpoints: Checkpoints, step: int, mesh: Mesh
) -> TrainState:
    """Shapes of a state, with what the checkpoint itself holds of its tasks and objectives.

    Args:
      abstract: of a run without tasks.
      step: name of the checkpoint.
    """
    held = checkpoints.shapes(step)
    whole = replicated(mesh)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    states, guard = (jax.tree.map(place, held.get(part) or {}) for part in ("aux", "guard"))
    guards = {task: GuardState(**counters) for task, counters in guard.items()}
    return dataclasses.replace(abstract, objective_state=states, guard=guards)
