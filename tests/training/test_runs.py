"""Whole runs in miniature: resume, other meshes, damaged and missing storage, signals, the
commands."""

import dataclasses
import errno
import json
import shutil
import signal
import time

import jax
import numpy as np
import processes
import pytest
import tiny
from tiny import assert_same_state, losses, saved_state

from jaxvl import evaluate as evaluate_command
from jaxvl import train as train_command
from jaxvl.command import STOPPED
from jaxvl.config import ConfigError
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.checkpoint import CheckpointError, Checkpoints
from jaxvl.training.guard import TrainingDiverged

pytestmark = pytest.mark.usefixtures("programs_kept")


def train(experiment, workdir, devices=2):
    """A run on the first `devices` devices: a step for two compiles faster than one for all."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("jaxvl.train", "jaxvl.training.restore"):
            few = lambda config: make_mesh(config, jax.devices()[:devices])
            patch.setattr(f"{module}.make_mesh", few)
        return train_command.train(experiment, workdir)


def run(workdir, devices=2, **changes):
    """Trains in `workdir`; returns {step: loss} of everything logged there so far."""
    train(tiny.experiment(**changes), workdir, devices)
    return losses(workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 6 steps with checkpoints at 3 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    run(workdir)
    return workdir


def at_step_3(finished, workdir):
    """A copy of the finished run as it was when only its first checkpoint existed."""
    shutil.copytree(finished / "checkpoints", workdir / "checkpoints", dirs_exist_ok=True)
    shutil.rmtree(workdir / "checkpoints" / "6")


def test_2n_steps_equal_n_restart_n_bit_for_bit(finished, tmp_path):
    at_step_3(finished, tmp_path)
    again = run(tmp_path)
    assert sorted(again) == [4, 5, 6]
    assert again == {s: v for s, v in losses(finished).items() if s > 3}
    assert_same_state(finished, tmp_path, 6)


SEVERAL = [pytest.param(n, marks=pytest.mark.slow) for n in (4, 8)]  # arrays are as whole on one


@pytest.mark.parametrize("devices", [1, *SEVERAL])
def test_restores_on_other_devices_with_equal_losses(finished, tmp_path, devices):
    at_step_3(finished, tmp_path)
    again = run(tmp_path, devices)
    for step, loss in again.items():
        np.testing.assert_allclose(loss, losses(finished)[step], rtol=1e-5)


def test_a_finished_run_is_not_trained_further(finished):
    before = losses(finished)
    assert run(finished) == before


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(finished, tmp_path, caplog):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert sorted(run(tmp_path)) == [4, 5, 6]


def test_all_checkpoints_damaged_is_an_error_that_names_them(finished, tmp_path):
    at_step_3(finished, tmp_path)
    for file in (tmp_path / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read:\n  step 3: "):
        run(tmp_path)


def test_a_full_disk_does_not_end_training_and_the_last_good_checkpoint_loads(
    tmp_path, monkeypatch
):
    real = Checkpoints._write
    calls = []

    def full(self, step, state, frame):
        calls.append(step)
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, step, state, frame)

    monkeypatch.setattr(Checkpoints, "_write", full)
    run(tmp_path)
    assert calls == [3, 6]
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [6]


def test_the_last_checkpoint_failing_is_an_error(tmp_path, monkeypatch):
    def full(self, step, state, frame):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write", full)
    with pytest.raises(CheckpointError, match="the last checkpoint could not be written"):
        run(tmp_path)


def test_another_model_tokenizer_or_preprocessing_is_refused(finished, tmp_path):
    at_step_3(finished, tmp_path)
    other = tiny.config().to_dict()["model"]
    with pytest.raises(
        ConfigError,
        match=r"model\.embed_dim: differs from the checkpoint in the workdir \(16 there, 8 here\)",
    ):
        run(tmp_path, model={**other, "embed_dim": 8})
    with pytest.raises(ConfigError, match=r"preprocess\.mean: differs"):
        run(tmp_path, preprocess=dict(image_size=16, mean=(0.4, 0.5, 0.5)))
    with pytest.raises(ConfigError, match="tokenizer: differs"):
        run(tmp_path, tokenizer=dict(vocab_size=64, lowercase=False))


def test_diverged_run_saves_its_last_good_state(tmp_path):
    experiment = tiny.experiment(optim=dict(warmup=0), guard=dict(stop_after=2), steps=12)
    experiment = dataclasses.replace(
        experiment, optim=dataclasses.replace(experiment.optim, lr=1e30)
    )
    with pytest.raises(TrainingDiverged, match="task 'pairs', step"):
        train(experiment, tmp_path, devices=1)
    step, _ = Checkpoints(tmp_path / "checkpoints", read_only=True).frame()
    assert all(
        np.isfinite(a).all()
        for a in jax.tree.leaves(saved_state(tmp_path, step))
        if a.dtype == np.float32
    )


def start(tmp_path):
    config = tiny.config_file(tmp_path / "config.py", steps=100_000, checkpoint=dict(every=20))
    (process,) = processes.start(processes.train(config, tmp_path / "run"), devices=1)
    return process


def wait_for_checkpoint(process, tmp_path, seconds=240):
    end = time.monotonic() + seconds
    folder = tmp_path / "run" / "checkpoints"
    while time.monotonic() < end and process.poll() is None:
        if folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir()):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no checkpoint within {seconds} s: {process.stderr.read()}")


def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED, said
    assert "stopped by SIGTERM after step" in said.replace("\n", " ")
    step, frame = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).frame()
    assert frame["positions"] == {"pairs": 16 * step}, "the data position is that of the state"


@pytest.mark.slow
def test_kill_during_a_save_leaves_the_last_good_checkpoint(tmp_path):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    end = time.monotonic() + 60  # catch it with a temporary folder open, if it can be caught
    folder = tmp_path / "run" / "checkpoints"
    while time.monotonic() < end and not any("tmp" in p.name for p in folder.iterdir()):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    step, frame = Checkpoints(folder, read_only=True).frame()
    assert step % 20 == 0 and frame["positions"] == {"pairs": 16 * step}
    assert saved_state(tmp_path / "run", step)


def test_command_line_errors_are_one_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n    return "
        "ml_collections.ConfigDict({'stpes': 3})\n"
    )
    assert (
        train_command.main([f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"])
        == 2
    )
    assert "stpes: unknown key; did you mean 'steps'?" in capsys.readouterr().err.replace("\n", " ")
    assert train_command.main(["--confg=x"]) == 2
    assert "--confg: unknown option; did you mean 'config'?" in capsys.readouterr().err.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mesh=dict(data=3)), r"mesh: data=3 does not fit 8 devices"),
        (dict(optim=dict(warmup=9)), r"optim\.warmup: 9 is longer than the run of 6 steps"),
        (
            dict(checkpoint=dict(best_metric="evla/acc")),
            r"checkpoint\.best_metric: 'evla/acc': no evaluator 'evla'",
        ),
    ],
)
def test_impossible_values_are_refused_before_anything_compiles(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, devices=8, **changes)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            dict(batch=12),
            r"tasks\.pairs\.data\.batch: 12 does not divide over the 8 batch shards of the mesh \(data x fsdp\); the nearest that does: 16",
        ),
        (
            dict(source=dict(tiny.SHAPES, split="trian_a")),
            r"^tasks\.pairs\.data\.source\.split: 'trian_a' is none; did you mean 'train_a'\? \(splits: ",
        ),
        (
            dict(fields=tiny.fields(text=dict(columns="nmae/en"))),
            r"^tasks\.pairs\.data\.fields\.text\.columns: 'nmae/en' is no column of shapes-.*; did you mean 'name/en'\? \(columns: .*image \(image\)",
        ),
        (
            dict(fields=tiny.fields(image=dict(column="name/en"))),
            r"^tasks\.pairs\.data\.fields\.image\.column: 'name/en' of shapes-.* holds text; must be image",
        ),
        (
            dict(fields=tiny.fields(group_id=None), objectives=dict(align=dict(duplicates="mask"))),
            r"^tasks\.pairs\.objectives\.align: needs the batch key 'group_id', which is not there \(there are: position, text; fields of tasks\.pairs\.data and hooks give them\)",
        ),
        (
            dict(missing="mask"),
            r"^tasks\.pairs\.data\.missing: 'mask': align would train on the padding of rows that lack",
        ),
    ],
)
def test_impossible_data_is_refused(tmp_path, data, message):
    objectives = data.pop("objectives", dict(align=1.0))
    tasks = dict(pairs={**tiny.task(**data), "objectives": objectives})
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, devices=8, tasks=tasks)


def test_patch_larger_than_the_image(tmp_path):
    model = tiny.config().to_dict()["model"]
    model["image"]["variant"] = "Ti/32"
    with pytest.raises(ConfigError, match=r"^model\.image.*32"):
        run(tmp_path, model=model)


def test_evaluate_command_gives_the_figures_of_the_loop(tmp_path, capsys):
    evals = dict(
        style=dict(name="zero_shot", source=tiny.TEST),
        texts=dict(name="retrieval", source=tiny.TEST, text="name/en"),
    )
    latest = train(tiny.experiment(evals=evals, log=dict(every=1)), tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "tb").is_dir()
    assert evaluate_command.main([f"--workdir={tmp_path}"]) == 0
    figures = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    assert figures.pop("step") == 6
    assert figures == pytest.approx(latest)
    assert evaluate_command.main([f"--workdir={tmp_path}", "--only=sytle"]) == 2
    assert (
        "--only: 'sytle' is not an evaluator; did you mean 'style'?"
        in capsys.readouterr().err.replace("\n", " ")
    )
