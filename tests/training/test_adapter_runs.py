"""A whole run with adapters: what it trains, what it leaves, and its export."""

import functools

import jax
import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.interop.bundle import Bundle
from jaxvl.training.build import build_model
from jaxvl.training.inputs import open_sources, task_tokenizer
from jaxvl.training.restore import restore_weights
from jaxvl.training.weights import load_weights, save_weights

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")

LOW = dict(name="lora", paths="attention/|mlp/", rank=2, trains="^log_scale$")
STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights that a run starts with, as `jaxvl.convert` writes them."""
    experiment = tiny.experiment()
    tokenizer = task_tokenizer(experiment, open_sources(experiment, print))
    model = build_model(experiment, tokenizer)
    params, _ = model.init(jax.random.key(9))
    inputs = experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    arrays = {path: np.asarray(value) for path, value in params.items()}
    bundle = Bundle(experiment.model, inputs, arrays, tokenizer, experiment.preprocess)
    workdir = tmp_path_factory.mktemp("base")
    save_weights(bundle, workdir)
    return workdir, arrays


def test_a_run_trains_its_adapters_alone_and_is_exported_merged(base, tmp_path, capsys):
    workdir, before = base
    run = tiny.experiment(
        start=str(workdir),
        tokenizer={},
        adapters=dict(low=LOW),
        steps=STEPS,
        checkpoint=dict(every=STEPS),
        optim=dict(lr=1e-2, warmup=0, weight_decay=0.1),
    )
    train_command.train(run, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    state = tiny.saved_state(tmp_path / "run", STEPS)
    params = state["params"]
    trained = {path for path in params if "/adapter/low/" in path} | {"log_scale"}
    count = sum(params[path].size for path in trained)
    whole = sum(value.size for value in params.values())
    assert f"trainable {count:,} of {whole:,} parameters" in said, said
    for path, value in params.items():
        if path not in trained:
            np.testing.assert_array_equal(value, before[path], err_msg=path)
        assert np.any(value) or path not in trained, path
    assert not np.array_equal(params["log_scale"], before["log_scale"])
    keys = [path for path, _ in jax.tree.leaves_with_path(state["opt_state"])]
    held = {key.key for path in keys for key in path if getattr(key, "key", None) in params}
    assert held == trained

    bundle = load_weights(tmp_path / "run")
    saved = restore_weights(tmp_path / "run")
    assert sorted(bundle.arrays) == sorted(before)
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(4, 16, 16, 3)).astype(np.float32)
    texts = rng.integers(2, 20, (4, 6))
    for method, x in (("encode_image", pictures), ("encode_text", texts)):
        merged = jax.jit(functools.partial(bundle.functional().apply, method=method))
        beside = jax.jit(functools.partial(saved.model.apply, method=method))
        got, _ = merged(bundle.arrays, {}, x)
        want, _ = beside(saved.params, saved.model_state, x)
        np.testing.assert_allclose(got, want, atol=1e-5)
        plain, _ = merged(before, {}, x)
        assert np.abs(plain - want).max() > 1e-3, method
