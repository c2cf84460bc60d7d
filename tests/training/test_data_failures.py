"""Runs whose data fails: they end with everything saved, and go on from there as if nothing had
been."""

import json
import shutil

import pytest
import tiny
from tiny import assert_same_state, losses

from jaxvl import train as train_command
from jaxvl.data.batches import Batches
from jaxvl.data.records import BadRecord, DataError, RecordSource
from jaxvl.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")
B = 16


def fails_at(monkeypatch, batch, error):
    """Batch `batch` of every feed cannot be made."""
    real = Batches.begin

    class Failed:
        def result(self):
            raise error

    monkeypatch.setattr(Batches, "begin", lambda self, i: Failed() if i == batch else real(self, i))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 steps in which nothing failed."""
    workdir = tmp_path_factory.mktemp("finished")
    train_command.train(tiny.experiment(), workdir)
    return workdir


def test_a_feed_that_fails_ends_the_run_with_everything_saved(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fails_at(patch, 4, ZeroDivisionError("a bug in a source"))
        with pytest.raises(ZeroDivisionError, match="a bug in a source"):
            train_command.train(tiny.experiment(), tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps[-1] == 4 and checkpoints.frame()[1]["positions"] == {"pairs": 4 * B}
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4], "the step without rows has no figures"
    train_command.train(tiny.experiment(), tmp_path)
    assert losses(tmp_path) == losses(finished)
    assert_same_state(tmp_path, finished, 6)


def test_a_first_batch_that_fails_saves_nothing(tmp_path, monkeypatch):
    fails_at(monkeypatch, 0, DataError("the disk is gone"))
    with pytest.raises(DataError, match="the disk is gone"):
        train_command.train(tiny.experiment(), tmp_path)
    assert not Checkpoints(tmp_path / "checkpoints").steps


def test_too_many_bad_records_end_the_run_with_everything_saved(tmp_path, monkeypatch, capsys):
    real = RecordSource.__getitem__

    def get(self, i):
        if i % 2:
            raise BadRecord("record cannot be read", "hash mismatch")
        return real(self, i)

    monkeypatch.setattr(RecordSource, "__getitem__", get)
    with pytest.raises(
        DataError,
        match=r"task 'pairs': shapes-.*, split 'train_a': .* records are bad \(record cannot be read: \d+\), more than",
    ):
        train_command.train(tiny.experiment(), tmp_path)
    # Those of the first batch alone could be chance; what is made ahead does not count.
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).frame()[1]["positions"] == {
        "pairs": 2 * B
    }


def test_bad_records_are_counted_once_through_a_resume(tmp_path, monkeypatch):
    """The run that goes on from a checkpoint tells of those before it as well, and of none
    twice."""
    real = RecordSource.__getitem__

    def get(self, i):
        if i % 5 == 0:
            raise BadRecord("record cannot be read", "hash mismatch")
        return real(self, i)

    def told(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [line["record cannot be read"] for line in lines if line["name"] == "skipped/pairs"]

    monkeypatch.setattr(RecordSource, "__getitem__", get)
    tasks = dict(pairs=tiny.task(error_budget=1.0))
    whole = tmp_path / "whole"
    again = tmp_path / "again"
    train_command.train(tiny.experiment(tasks=tasks), whole)
    (count,) = told(whole)
    shutil.copytree(whole / "checkpoints", again / "checkpoints")
    shutil.rmtree(again / "checkpoints" / "6")
    train_command.train(tiny.experiment(tasks=tasks), again)
    assert told(again) == [count]
    frames = [
        Checkpoints(workdir / "checkpoints", read_only=True).frame()[1]["skipped_records"]
        for workdir in (whole, again)
    ]
    assert frames == [{"pairs": {"record cannot be read": count}}] * 2
    assert 6 * B / 5 / 2 < count < 6 * B / 5 * 2


def test_a_run_with_another_batch_continues_its_stream(finished, tmp_path, monkeypatch):
    """Three steps of 16 rows, then steps of 8: which records they get is what the stream has
    there."""
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    starts = []
    real = Batches.__init__

    def init(self, *args, start, **options):
        starts.append(start.position)
        real(self, *args, start=start, **options)

    monkeypatch.setattr(Batches, "__init__", init)
    tasks = dict(pairs=tiny.task(batch=8))
    accept = dict(accept=("tasks.pairs.data.batch",))
    train_command.train(tiny.experiment(tasks=tasks, resume=accept), tmp_path)
    assert starts == [3 * B]
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).frame()[1]["positions"] == {
        "pairs": 3 * B + 3 * 8
    }
