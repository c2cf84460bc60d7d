"""Work folders in an object store: what an interrupted run leaves there is what one in a local
folder would have left."""

import json
import os
import pathlib
import subprocess
import sys
import time

import boto3
import jax
import jax.numpy as jnp
import numpy as np
import object_store
import pytest
import tiny

from jaxvl import evaluate as evaluate_command
from jaxvl import paths
from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.evals.report import read_metrics
from jaxvl.training.checkpoint import CheckpointConfig, Checkpoints
from jaxvl.training.experiment import Experiment
from jaxvl.training.growing import GrowingFiles
from jaxvl.training.start import initial_weights

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 20
# The demo with a smaller everything.
DEMO = [
    f"--config.{key}={value}"
    for key, value in {
        "steps": 16,
        "optim.warmup": 4,
        "checkpoint.every": 4,
        "log.every": 1,
        "tasks.pairs.data.batch": 16,
        "tasks.pairs.data.source.variants": 1,
        **{
            f"evals.{name}.source.variants": 1
            for name in ("seen_style", "unseen_style", "unseen_concepts", "retrieval")
        },
        "evals.unseen_style.every": 8,
    }.items()
]


@pytest.fixture
def bucket(monkeypatch):
    return object_store.start(monkeypatch)


def names(bucket, prefix=""):
    """Keys of all objects, as another client sees them."""
    pages = (
        boto3.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket.removeprefix("s3://"), Prefix=prefix)
    )
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def test_checkpoints_are_kept_and_read_back(bucket):
    folder = paths.as_path(f"{bucket}/run/checkpoints")
    states = {
        step: {"x": jnp.arange(1000.0) * step, "y": {"z": jnp.full((3, 4), step, jnp.int32)}}
        for step in (1, 2, 3)
    }
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=2))
    for step, state in states.items():
        assert checkpoints.save(step, state, {"step": step})
    checkpoints.finish()
    checkpoints.close()
    again = Checkpoints(folder, read_only=True)
    assert again.steps == [2, 3]
    for step in again.steps:
        _, state, frame = again.restore(lambda _, step=step: abstract(states[step]), step)
        assert frame == {"step": step}
        for ours, saved in zip(jax.tree.leaves(states[step]), jax.tree.leaves(state)):
            np.testing.assert_array_equal(ours, saved)
    assert not [name for name in names(bucket) if name.startswith("run/checkpoints/1/")]


def test_a_checkpoint_without_its_last_object_is_none(bucket):
    """A kill during a save leaves objects, but not the one that is written last."""
    folder = paths.as_path(f"{bucket}/run/checkpoints")
    state = {"x": jnp.ones(3)}
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state, {"mark": "first"})
    checkpoints.finish()
    checkpoints.close()
    boto3.client("s3").delete_object(
        Bucket=bucket.removeprefix("s3://"), Key="run/checkpoints/2/commit_success.txt"
    )
    assert Checkpoints(folder, read_only=True).steps == [1]
    writing = Checkpoints(folder)
    assert writing.save(2, state, {"mark": "again"})
    writing.finish()
    assert Checkpoints(folder, read_only=True).frame() == (2, {"mark": "again", "step": 2})


def test_a_store_that_is_away_is_no_damage(bucket, monkeypatch):
    """A good checkpoint must not be taken for a damaged one, or the run would go on from an older
    one."""
    folder = paths.as_path(f"{bucket}/run/checkpoints")
    state = {"x": jnp.ones(3)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {"step": 1})
    checkpoints.finish()

    def away(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(checkpoints._manager, "restore", away)
    monkeypatch.setattr(paths, "exists", away)
    with pytest.raises(ConnectionError, match="no route"):
        checkpoints.restore(lambda _: abstract(state))


def test_lines_are_there_within_seconds_and_a_resume_goes_on_with_them(bucket):
    workdir = paths.as_path(f"{bucket}/run")
    first = GrowingFiles(workdir, every=0.2)
    file = open(first.resume("metrics.jsonl"), "a", buffering=1)
    for number in range(3):
        file.write(f"{number}\n")
    end = time.monotonic() + 20
    while not names(bucket) or paths.read_text(workdir / "metrics.jsonl") != "0\n1\n2\n":
        assert time.monotonic() < end, "what was written is not in the store"
        time.sleep(0.1)
    second = GrowingFiles(workdir, every=1000.0)  # the first is killed: it closes nothing
    with open(second.resume("metrics.jsonl"), "a", buffering=1) as file:
        file.write("3\n")
        (second.folder / "tb").mkdir()
        (second.folder / "tb" / "events").write_bytes(b"board")
    second.close()
    assert paths.read_text(workdir / "metrics.jsonl") == "0\n1\n2\n3\n"
    assert paths.read_bytes(workdir / "tb" / "events") == b"board"
    assert not second.folder.exists()


def test_a_store_that_fails_keeps_the_lines_and_does_not_end_the_run(bucket, monkeypatch):
    growing = GrowingFiles(paths.as_path(f"{bucket}/run"), every=0.1)
    real = paths.upload
    fails = [True]

    def upload(file, path):
        if fails[0]:
            raise OSError("503 Slow Down")
        real(file, path)

    monkeypatch.setattr(paths, "upload", upload)
    (growing.folder / "metrics.jsonl").write_text("1\n")
    growing.flush()
    assert not names(bucket)
    fails[0] = False
    growing.close()
    assert paths.read_text(paths.as_path(f"{bucket}/run/metrics.jsonl")) == "1\n"


def must_not_build(*_, **__):
    raise AssertionError("the corpus is built, though it is in the cache")


def test_a_corpus_is_shared_by_machines(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", f"{bucket}/cache")
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "here"))
    config = Shapes(size=8, variants=1)
    said = []
    built = config.prepare(said.append)
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "there"))
    monkeypatch.setattr(
        "jaxvl.data.sources.demo.shapes.build", must_not_build
    )  # another machine copies
    copied = config.prepare(said.append)
    assert (
        copied.folder.is_relative_to(tmp_path / "there" / "fetched")
        and copied.folder.name == built.folder.name
    )
    ours = built.split("test_a")
    theirs = copied.split("test_a")
    assert len(ours) and [ours[i] for i in range(len(ours))] == [
        theirs[i] for i in range(len(theirs))
    ]
    copied.verify()
    said.clear()
    assert config.prepare(said.append).folder == copied.folder and not said, "copied once"


def test_a_damaged_shared_corpus_is_built_anew(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", f"{bucket}/cache")
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "here"))
    config = Shapes(size=8, variants=1)
    said = []
    name = config.prepare(said.append).folder.name
    file = paths.as_path(f"{bucket}/cache/{name}/records.array_record")
    data = bytearray(paths.read_bytes(file))
    data[len(data) // 2] ^= 1
    paths.write_bytes(file, bytes(data))
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "there"))
    config.prepare(said.append).verify()
    assert any("records.array_record is not what was built" in text for text in said)
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "third"))
    said.clear()
    config.prepare(said.append)
    assert not any("built anew" in text for text in said), "the good one is in its place"


def kill_after_a_checkpoint(options, bucket, seconds=300, **environment):
    """Starts a run, and kills it once its first checkpoint is whole."""
    command = [sys.executable, "-m", "jaxvl.train", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    end = time.monotonic() + seconds
    while not any(
        name.count("/") == 3 and name.endswith("/commit_success.txt")
        for name in names(bucket, "run/checkpoints/")
    ):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"no checkpoint: {process.stderr.read()}")
        time.sleep(0.02)
    process.kill()
    process.communicate()


def assert_same_end(here, remote, steps, killed_at):
    """The final state bit for bit, the same figures, and every file of a work folder."""
    tiny.assert_same_state(here, remote, steps)
    losses = [
        {
            r["step"]: r["loss"]
            for r in read_metrics(place / "metrics.jsonl")
            if r["kind"] == "train"
        }
        for place in (here, remote)
    ]
    assert losses[1].items() <= losses[0].items(), "the same figures"
    lost = sorted(set(losses[0]) - set(losses[1]))
    assert len(lost) <= 2 and all(killed_at - 2 <= step <= killed_at for step in lost), (
        "but for what the kill took"
    )
    for name in ("config.json", "machine.json", "gallery.json", "report.html"):
        assert paths.is_file(remote / name), name
    assert paths.list_folder(remote / "tb")


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_there_ends_as_one_here(
    bucket, tmp_path, monkeypatch, capsys
):
    """Config, corpus and work folder on `s3://`; the oracle is an uninterrupted run in a local
    folder."""
    file = f"{bucket}/configs/run.py"
    remote = paths.as_path(f"{bucket}/run")
    evals = dict(style=dict(name="zero_shot", source=tiny.TEST))
    tiny.config_file(file, steps=STEPS, evals=evals, checkpoint=dict(every=5), log=dict(every=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    expected = train_command.train(resolve(Experiment, load_file(file)), tmp_path / "local")

    monkeypatch.setenv("JAXVL_CACHE", f"{bucket}/cache")
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "copies"))
    options = [f"--config={file}", f"--workdir={remote}"]
    kill_after_a_checkpoint(options, bucket)
    found = Checkpoints(remote / "checkpoints", read_only=True).steps[-1]
    assert found < STEPS, "it was killed before its end"
    assert train_command.main(options) == 0
    assert f"resuming from step {found} of {remote}" in capsys.readouterr().err.replace("\n", "")
    assert_same_end(tmp_path / "local", remote, STEPS, found)

    assert evaluate_command.main([f"--workdir={remote}"]) == 0
    figures = json.loads(paths.read_text(remote / "evaluate" / "results.json"))
    assert figures.pop("step") == STEPS
    assert figures == pytest.approx(expected)
    assert not (tmp_path / "s3:").exists() and not (ROOT / "s3:").exists(), (
        "nothing went to a folder of that name"
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_demo_in_an_object_store(bucket, tmp_path):
    """`configs/align_shapes.py` made small, by its commands, on one device."""
    file = f"{bucket}/configs/align_shapes.py"
    remote = paths.as_path(f"{bucket}/run")
    paths.write_bytes(paths.as_path(file), (ROOT / "configs" / "align_shapes.py").read_bytes())
    environment = {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAXVL_CACHE": str(tmp_path / "cache"),
    }

    def run(command, *options):
        program = [sys.executable, "-m", f"jaxvl.{command}", *options]
        done = subprocess.run(
            program,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr.replace("\n", "")

    run("train", f"--config={file}", f"--workdir={tmp_path / 'local'}", *DEMO)
    environment |= {"JAXVL_CACHE": f"{bucket}/cache", "JAXVL_LOCAL_CACHE": str(tmp_path / "copies")}
    options = [f"--config={file}", f"--workdir={remote}", *DEMO]
    kill_after_a_checkpoint(options, bucket, **environment)
    found = Checkpoints(remote / "checkpoints", read_only=True).steps[-1]
    assert found < 16, "it was killed before its end"
    assert f"resuming from step {found} of {remote}" in run("train", *options)
    assert_same_end(tmp_path / "local", remote, 16, found)
    for workdir in (tmp_path / "local", remote):
        run("evaluate", f"--workdir={workdir}")
    ours, theirs = (
        json.loads(paths.read_text(workdir / "evaluate" / "results.json"))
        for workdir in (tmp_path / "local", remote)
    )
    assert ours == theirs


@pytest.mark.slow
def test_weights_of_a_run_there_start_another(bucket):
    workdir = f"{bucket}/first"
    train_command.train(
        tiny.experiment(steps=2, optim=dict(lr=1e-3, warmup=0)), paths.as_path(workdir)
    )
    [rule] = initial_weights(tiny.experiment(start=workdir)).rules
    taken = rule.sources[0].arrays
    saved = tiny.saved_state(workdir, 2)["params"]
    assert sorted(taken) == sorted(saved) and taken
    for path, array in saved.items():
        np.testing.assert_array_equal(taken[path], array)
