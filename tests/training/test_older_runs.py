"""Checkpoints of versions whose configs named a corpus: their weights are read, and nothing else of
them."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from jaxvl import convert
from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.older import OlderRunWarning, is_older, present_config, weights_config
from jaxvl.training.restore import restore_weights
from jaxvl.training.resume import changes
from jaxvl.training.start import initial_weights

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")
# As the version before wrote them.
DATA = dict(
    corpus=dict(name="shapes", size=16, variants=1, seed=0, clips=False),
    split="train_a",
    batch=16,
    image_size=16,
    text_length=6,
    images_per_row=1,
    row_length=None,
    captions=dict(locale="en", name=1.0),
    modalities=["image", "text"],
    shuffle=True,
    threads=2,
)
STYLE = dict(
    name="zero_shot", corpus=DATA["corpus"], split="test_a", every=0, locale="en", gallery=0
)
LEFT_OUT = r"is a run of an earlier version: its tasks, and its evaluators \(style\), are left out; evaluators can be named anew"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train_command.train(tiny.experiment(steps=2, checkpoint=dict(every=2)), workdir)
    return workdir


@pytest.fixture
def older(trained, tmp_path):
    """A run with the state of `trained` and the frame of an earlier version."""
    checkpoints = Checkpoints(trained / "checkpoints", read_only=True)
    _, frame = checkpoints.frame()
    config = dict(frame["config"], evals=dict(style=STYLE))
    config["tasks"] = dict(pairs=dict(config["tasks"]["pairs"], data=DATA))
    del frame["samplers"]
    del frame["form"]
    frame["averages"] = ["params", "rest"]
    state = tiny.saved_state(trained, 2)
    del state["teachers"]
    state["rest"] = state.pop("model_state")
    state["aux"] = {slot: () for slot in state.pop("objective_state")}
    shutil.copytree(trained, tmp_path / "older", ignore=shutil.ignore_patterns("checkpoints"))
    written = Checkpoints(tmp_path / "older" / "checkpoints")
    written.save(2, state, {**frame, "config": config})
    written.finish()
    written.close()
    assert is_older(
        Checkpoints(tmp_path / "older" / "checkpoints", read_only=True).frame()[1]["config"]
    )
    return tmp_path / "older"


def test_its_weights_are_read_with_one_sentence(trained, older):
    want = restore_weights(trained)
    with pytest.warns(OlderRunWarning, match=LEFT_OUT) as said:
        got = restore_weights(older)
    assert len([warning for warning in said if warning.category is OlderRunWarning]) == 1
    assert got.experiment.longest_text == 6 and got.experiment.tasks == {} and got.step == 2
    assert (
        got.tokenizer.to_json() == want.tokenizer.to_json()
        and got.experiment.preprocess == want.experiment.preprocess
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        (got.params, got.model_state),
        (want.params, want.model_state),
    )


def test_a_run_starts_from_it(trained, older):
    with pytest.warns(OlderRunWarning, match=LEFT_OUT):
        got = initial_weights(tiny.experiment(init_from=str(older)))
    want = restore_weights(trained)
    [rule] = got.rules
    jax.tree.map(
        np.testing.assert_array_equal, rule.sources[0].arrays, {**want.params, **want.model_state}
    )


def test_it_is_converted(trained, older, tmp_path):
    with pytest.warns(OlderRunWarning, match=LEFT_OUT):
        assert convert.main([f"--from=jaxvl:{older}", f"--to=jaxvl:{tmp_path / 'new'}"]) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        restore_weights(tmp_path / "new").params,
        restore_weights(trained).params,
    )


def test_it_cannot_go_on(older):
    before = sorted(older.rglob("*"))
    accept = dict(accept=("tasks.pairs.data",))
    with pytest.raises(
        ConfigError,
        match=r"^--workdir: holds a run of an earlier version, .*; choose another, and config\.start=FOLDER",
    ):
        train_command.train(tiny.experiment(steps=4, resume=accept), older)
    assert sorted(older.rglob("*")) == before


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, 6),
        (dict(images_per_row=4), 24),
        (dict(images_per_row=4, row_length=20), 20),
    ],
)
def test_the_longest_text_is_that_of_its_tasks(tmp_path, more, expected):
    config = {"tasks": {"a": {"data": dict(DATA, **more)}}, "evals": {}, "text_length": None}
    with pytest.warns(OlderRunWarning, match=r"evaluators \(none\)"):
        assert weights_config(config, tmp_path)["text_length"] == expected


def test_a_config_of_now_is_left_as_it_is(tmp_path):
    config = tiny.config().to_dict()
    assert weights_config(config, tmp_path) is config


@pytest.mark.parametrize(
    "lock, freeze, now",
    [
        ("none", None, None),
        ("image", None, "^image/encoder/"),
        ("text", "bias$", "bias$|^text/encoder/"),
    ],
)
def test_lock_of_an_older_model_is_freeze_now(lock, freeze, now):
    model = dict(name="dual_encoder", lock=lock)
    config = dict(model=model, tasks={}, optim=dict(freeze=freeze, lr=0.5))
    present = present_config(config)
    assert present["model"] == dict(name="dual_encoder")
    assert present["optim"] == dict(freeze=now, lr=0.5)
    assert config["model"] is model and "lock" in model


def test_run_of_a_model_with_lock_is_read_and_goes_on(trained, tmp_path):
    _, frame = Checkpoints(trained / "checkpoints", read_only=True).frame()
    config = dict(frame["config"], model=dict(frame["config"]["model"], lock="none"))
    shutil.copytree(trained, tmp_path / "older")
    place = tmp_path / "older" / "checkpoints" / "2" / "frame" / "metadata"
    place.write_text(json.dumps({**frame, "config": config}))
    weights = restore_weights(tmp_path / "older")
    assert weights.experiment.model == restore_weights(trained).experiment.model
    same = tiny.experiment(steps=2, checkpoint=dict(every=2))
    assert changes(config, same) == {}


def test_a_coca_with_open_clips_options_is_a_model_of_its_own_now(tmp_path):
    model = dict(name="coca", poolers="shared", start_id=5, cross="after", late_mask=True)
    got = weights_config({"model": model, "tasks": {}, "evals": {}}, tmp_path)["model"]
    assert got == dict(model, name="open_clip_coca", text_pool="class", pooler_norm=True)
