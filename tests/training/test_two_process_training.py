"""Two processes of four devices, and four of two, train as one of eight does, embed as it does, save
one checkpoint together, and resume from it."""

import json
import shutil

import boto3
import numpy as np
import object_store
import processes
import pytest
import tiny

from jaxvl import paths
from jaxvl.data.tables import read_table

PAIRS = tiny.config().to_dict()["tasks"]["pairs"]
CHANGES = dict(
    mesh=dict(data=4, fsdp=2),
    evals=dict(pairs=dict(name="retrieval", source=tiny.TEST, text="name/en")),
    tasks=dict(pairs=PAIRS, more=tiny.task(source=dict(tiny.SHAPES, split="train_b"))),
    schedule=dict(name="weighted", weights=dict(pairs=2.0, more=1.0)),
    after=dict(embedded=dict(name="cache_features", source=tiny.TEST, text="name/en")),
)


def train(number, workdir):
    """Losses by (step, task) and the last evaluation of a run of two tasks in `workdir` by so many
    processes."""
    config = tiny.config_file(workdir.with_suffix(".py"), **CHANGES)
    processes.finish(processes.start(processes.train(config, workdir), number))
    lines = [json.loads(line) for line in paths.read_text(workdir / "metrics.jsonl").splitlines()]
    evaluated = [
        {k: v for k, v in line.items() if k not in ("seconds", "time")}
        for line in lines
        if line["kind"] == "eval"
    ]
    losses = {
        (line["step"], line["name"]): line["loss"]
        for line in lines
        if line["kind"] == "train" and line["name"] != "all"
    }
    return losses, evaluated[-1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The workdir, losses and figures of one process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, *train(1, workdir)


def embeddings(workdir):
    """Column -> [n, D] of what the run has embedded at its end."""
    table = read_table(workdir / "tables" / "embedded")
    return {column: np.asarray(table.array(column)) for column in ("image", "text")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_train_and_embed_as_one_and_resume(one, tmp_path, number):
    whole, alone, figures = one
    together, figures_together = train(number, tmp_path / "several")
    assert sorted(together) == sorted(alone) and [step for step, _ in sorted(alone)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]  # only the first process writes
    assert {task for _, task in alone} == {"pairs", "more"}
    np.testing.assert_allclose([together[s] for s in alone], list(alone.values()), rtol=1e-5)
    assert figures_together == figures
    expected = embeddings(whole)
    for column, found in embeddings(tmp_path / "several").items():
        np.testing.assert_allclose(found, expected[column], atol=1e-5)
    # Killed after its first checkpoint, they resume; so do fewer with what they have saved.
    for fewer in (number, number // 2):
        again = tmp_path / f"again{fewer}"
        shutil.copytree(tmp_path / "several" / "checkpoints", again / "checkpoints")
        shutil.rmtree(again / "checkpoints" / "6")
        resumed, _ = train(fewer, again)
        later = [key for key in sorted(together) if key[0] > 3]
        assert sorted(resumed) == later
        np.testing.assert_allclose(
            [resumed[k] for k in later], [together[k] for k in later], rtol=1e-5
        )


@pytest.mark.slow
def test_two_processes_share_an_object_store(tmp_path, monkeypatch):
    """What they save there together is what they save in a folder; after a kill they go on with
    it."""
    bucket = object_store.start(monkeypatch)
    remote = paths.as_path(f"{bucket}/run")
    here, figures = train(2, tmp_path / "here")
    there, figures_there = train(2, remote)
    assert there == here and figures_there == figures
    tiny.assert_same_state(tmp_path / "here", remote, 6)
    # Killed while the last step was saved: the object that is written last is missing.
    boto3.client("s3").delete_object(
        Bucket=bucket.removeprefix("s3://"), Key="run/checkpoints/6/commit_success.txt"
    )
    again, _ = train(2, remote)
    assert again == here
    tiny.assert_same_state(tmp_path / "here", remote, 6)
