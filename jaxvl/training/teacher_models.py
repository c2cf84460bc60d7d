"""The models of a run's teachers, from its config."""

from __future__ import annotations

import jax.numpy as jnp

from jaxvl import paths
from jaxvl.config import ConfigError, check, nearest, resolve, to_path
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.models.functional import Functional, functional
from jaxvl.training.build import Vocabulary
from jaxvl.training.checkpoint import CheckpointError, Checkpoints
from jaxvl.training.experiment import Experiment
from jaxvl.training.older import weights_config
from jaxvl.training.teachers import Teacher


def make_teachers(
    experiment: Experiment, model: Functional, tokenizer: Tokenizer | Vocabulary
) -> dict[str, Teacher]:
    """The teachers by their keys.

    Raises:
      ConfigError: a hook reads a teacher that is not there, or none reads one that is; `ema`
        without a decay and without `optim.ema`; a workdir without a checkpoint, or whose tokenizer,
        preprocessing or text length is not this run's.
    """
    _check_names(experiment)
    teachers = {}
    for name, config in experiment.teachers.items():
        path = f"teachers.{name}"
        needs_average = config.source == "ema" and config.decay is None
        check(
            not needs_average or experiment.optim.ema is not None,
            f"{path}.decay",
            "is None, which means the average of optim.ema, but that is None too",
        )
        teacher_model = model
        if config.source not in ("initial", "ema"):
            try:
                teacher_model = _of_workdir(experiment, to_path(config.source, "source"), tokenizer)
            except ConfigError as error:
                raise error.under(path) from None
        teachers[name] = Teacher(config.source, config.decay, teacher_model)
    return teachers


def _check_names(experiment: Experiment) -> None:
    """Raises ConfigError unless hooks read the teachers that there are, each of them."""
    read = set()
    for task, config in experiment.tasks.items():
        for label, hook in config.before.items():
            for name in hook.teachers:
                check(
                    name in experiment.teachers,
                    f"tasks.{task}.before.{label}.teacher",
                    f"{name!r} is not among the teachers"
                    f"{nearest(name, list(experiment.teachers))} (there are: "
                    f"{', '.join(experiment.teachers) or 'none'})",
                )
                read.add(name)
    for name in experiment.teachers:
        check(name in read, f"teachers.{name}", "is read by no hook of any task; leave it out")


def _of_workdir(
    experiment: Experiment, workdir: paths.Path, tokenizer: Tokenizer | Vocabulary
) -> Functional:
    """The model of another run."""
    try:
        _, frame = Checkpoints(workdir / "checkpoints", read_only=True).frame()
    except CheckpointError as error:
        raise ConfigError("source", str(error)) from None
    if isinstance(tokenizer, Tokenizer):  # a plan knows the vocabulary's size only
        same = frame["tokenizer"] == tokenizer.to_json()
        check(same, "source", f"the tokenizer of {workdir} is not that of this run")
    theirs = Preprocess.from_json(frame["preprocess"])  # parsed: older ones have fewer fields
    check(
        theirs == experiment.preprocess,
        "source",
        f"the preprocess of {workdir} is not that of this run",
    )
    other = resolve(Experiment, weights_config(frame["config"], workdir))
    ids = (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    inputs = other.inputs(*ids)
    length = experiment.inputs(*ids).text_length
    check(
        inputs.text_length >= length,
        "source",
        f"{workdir} reads {inputs.text_length} tokens; this run has {length}",
    )
    dtype = jnp.dtype(experiment.dtype)
    return functional(other.model, inputs, dtype, adapters=other.adapters)
