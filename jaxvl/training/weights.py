"""Weights without a run: a workdir that holds what `jaxvl.convert` brought, and what it takes from
a run's."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from jaxvl import paths
from jaxvl.adapters.base import merge
from jaxvl.config import loaded_plugins, to_dict
from jaxvl.data.preprocess import Preprocess
from jaxvl.interop.bundle import Bundle
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.tokens import without
from jaxvl.models.text import TextTransformerConfig
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.experiment import Experiment
from jaxvl.training.optim import OptimConfig
from jaxvl.training.restore import restore_weights


def save_weights(bundle: Bundle, workdir: paths.Path) -> None:
    """Writes a workdir that evaluation, captioning and `start` read: one checkpoint, of step 0,
    without an optimiser's state.

    Raises:
      ConversionError: the workdir has checkpoints already. CheckpointError: it could not be
        written.
    """
    folder = workdir / "checkpoints"
    if paths.list_folder(folder):
        raise ConversionError(f"{workdir}: has checkpoints already; choose another folder")
    paths.make_folder(workdir)
    options = dict(
        steps=1,
        optim=OptimConfig(warmup=0),
        text_length=bundle.inputs.text_length,
        plugins=loaded_plugins(),
    )
    experiment = Experiment(model=bundle.model, preprocess=bundle.preprocess, **options)
    model = bundle.functional()
    arrays = lambda paths: {path: jnp.asarray(bundle.arrays[path]) for path in paths}
    state = {"params": arrays(model.params), "rest": arrays(model.model_state)}
    frame = {
        "config": to_dict(experiment),
        "tokenizer": (bundle.tokenizer or without(bundle.inputs)).to_json(),
        "preprocess": bundle.preprocess.to_json(),
        "positions": {},
        "skipped_records": {},
        "metrics": {},
        "weights_only": True,
        "origin": dict(bundle.origin),
    }
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, state, frame)
    checkpoints.finish()
    checkpoints.close()
    paths.write_text(workdir / "config.json", json.dumps(to_dict(experiment), indent=2))


def load_weights(
    workdir: paths.Path,
    step: str | None = None,
    plugins: str | None = None,
    weights: str | None = None,
) -> Bundle:
    """The evaluation weights of a checkpoint of a run, or of `save_weights`.

    Args:
      weights: others than those of evaluation, see `OptimConfig.evaluate`.
      plugins: where files of the run's own lie now, see `config.plugins`.

    Raises:
      ConfigError: a wrong step, or a plugin that is gone; adapters that cannot be merged into the
        model's own weights, as lora is. CheckpointError: no readable checkpoint.
    """
    given = {"plugins": plugins, "optim.evaluate": weights}
    assignments = {key: value for key, value in given.items() if value is not None}
    saved = restore_weights(workdir, step, assignments)
    tokenizer = saved.tokenizer
    params = merge(saved.experiment.adapters, saved.params)
    arrays = {
        path: np.asarray(array)
        for part in (params, saved.model_state)
        for path, array in part.items()
    }
    inputs = saved.experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    text = saved.experiment.model.encoders.get("text")
    if isinstance(text, TextTransformerConfig) and text.positions:
        # Theirs read texts of one length only.
        inputs = dataclasses.replace(inputs, text_length=text.positions)
    preprocess = Preprocess.from_json(saved.frame["preprocess"])
    found = None if tokenizer.kind == "none" else tokenizer
    return Bundle(
        saved.experiment.model, inputs, arrays, found, preprocess, saved.frame.get("origin", {})
    )
