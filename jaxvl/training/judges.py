"""Judges of a run: which model reads images and texts for an objective, from its config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import paths
from jaxvl.config import ConfigError, check, resolve, to_path
from jaxvl.data.preprocess import Preprocess
from jaxvl.models.functional import Functional, functional
from jaxvl.training.checkpoint import CheckpointError, Checkpoints
from jaxvl.training.experiment import Experiment
from jaxvl.training.older import weights_config
from jaxvl.training.rollout import Judge


def make_judges(experiment: Experiment, model: Functional, tokenizer: Any) -> dict[str, Judge]:
    """`task/objective` -> judge, of the objectives that have the model write.

    Raises:
      ConfigError: a model that writes nothing; `ema` without an average; a workdir without a
        checkpoint, or whose tokenizer, preprocessing or text length is not this run's.
    """
    judges = {}
    for task, config in experiment.tasks.items():
        for key, use in config.objectives.items():
            source = getattr(use.objective, "judge", None)
            if source is None:
                continue
            path = f"tasks.{task}.objectives.{key}"
            check(
                getattr(experiment.model, "writes", False),
                path,
                f"{use.name!r} needs a model that writes captions, as coca",
            )
            start = getattr(experiment.model, "start_id", None)
            check(
                start is None,
                path,
                f"the model's texts begin with a token of their own (start_id={start}), which "
                f"it does not write",
            )
            check(
                not any(slot.startswith(f"{task}/") for slot in judges),
                path,
                "a task may have one objective that has the model write",
            )
            check(
                source != "ema" or experiment.optim.ema is not None,
                f"{path}.judge",
                "'ema' needs optim.ema, which is None",
            )
            try:
                judged = (
                    model
                    if source in ("initial", "ema")
                    else _other(experiment, to_path(source, "judge"), tokenizer)
                )
            except ConfigError as error:
                raise error.under(path) from None
            tokens = jax.ShapeDtypeStruct((1, config.data.text_length), jnp.int32)
            read = lambda params, rest, tokens, judged=judged: judged.apply(
                params, rest, tokens, method="encode_text"
            )[0]
            width = jax.eval_shape(read, judged.params, judged.rest, tokens).shape[-1]
            judges[f"{task}/{key}"] = Judge(
                source, judged, width, tokenizer.pad_id, tokenizer.eos_id
            )
    return judges


def _other(experiment: Experiment, workdir: paths.Path, tokenizer: Any) -> Functional:
    """The model of another run."""
    try:
        _, frame = Checkpoints(workdir / "checkpoints", read_only=True).frame()
    except CheckpointError as error:
        raise ConfigError("judge", str(error)) from None
    rule = getattr(tokenizer, "to_json", None)  # a plan knows the vocabulary's size only
    same = {
        "tokenizer": rule is None or frame["tokenizer"] == rule(),
        "preprocess": Preprocess.from_json(frame["preprocess"])
        == experiment.preprocess,  # parsed: older ones have fewer fields
    }
    for part, holds in same.items():
        check(holds, "judge", f"the {part} of {workdir} is not that of this run")
    other = resolve(Experiment, weights_config(frame["config"], workdir))
    inputs = other.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    length = experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id).text_length
    check(
        inputs.text_length >= length,
        "judge",
        f"{workdir} reads {inputs.text_length} tokens; this run writes {length}",
    )
    return functional(other.model, inputs, jnp.dtype(experiment.dtype), other.adapters)
