"""A run that goes back to a checkpoint after bad steps, and what it tells of them."""

import dataclasses
import json
import pathlib
import shutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.config import to_dict
from jaxvl.data.gaps import Gaps
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.training.agreement import Agreement, Verdict
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.guard import TrainingDiverged

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")
B = 16


@OBJECTIVES.register("poisoned")
@dataclasses.dataclass(frozen=True)
class Poisoned(Objective):
    """Not finite where the batch has one of the positions `first … end - 1` of the stream; its
    figures tell the positions of the batch."""

    first: int = 0
    end: int = 0
    reads: ClassVar[tuple[str, ...]] = ()
    batch_keys: ClassVar[tuple[str, ...]] = ("position",)

    def __call__(self, outputs, batch, state, context):
        position = batch["position"]
        bad = ((position >= self.first) & (position < self.end)).any()
        figures = {f"row{i}": position[i] for i in range(len(position))}
        return Loss(jnp.where(bad, jnp.nan, 0.0), figures), state


def config(first, end, **changes):
    """Steps 7 and 8 of 12 have the positions 96 … 127."""
    objectives = dict(align=1.0, poison=dict(name="poisoned", first=first, end=end, weight=1.0))
    changes = {
        **dict(steps=12, checkpoint=dict(every=4, keep=1), guard=dict(stop_after=2, rollback=1)),
        **changes,
    }
    return tiny.experiment(
        tasks=dict(pairs=dict(data=tiny.data(), objectives=objectives)), **changes
    )


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def learnt(workdir):
    """Step -> positions of the batch that it learnt from, of its last time."""
    return {
        line["step"]: tuple(int(line[f"poison/row{i}"]) for i in range(B))
        for line in records(workdir)
        if line["kind"] == "train"
    }


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory):
    """A run whose steps 7 and 8 are bad: it goes back to step 4 and does without their data."""
    workdir = tmp_path_factory.mktemp("gone_back")
    train_command.train(config(96, 128), workdir)
    return workdir


def test_a_run_goes_back_and_leaves_the_data_of_the_bad_steps_out(gone_back):
    positions = learnt(gone_back)
    assert sorted(positions) == list(range(1, 13))
    for step, rows in positions.items():
        first = (step - 1) * B if step < 7 else (step + 1) * B
        assert rows == tuple(range(first, first + B)), step
    name, frame = Checkpoints(gone_back / "checkpoints", read_only=True).frame()
    assert name == 12
    assert frame["positions"] == {"pairs": 14 * B} and frame["task_steps"] == {"pairs": 12}
    assert frame["gaps"] == {"pairs": [[96, 128]]}
    assert frame["guard"] == {"rows": {}, "rollbacks": 1, "reports": 2}
    (told,) = [line for line in records(gone_back) if line["name"] == "rollback"]
    assert (told["to"], told["bad_steps"], told["skipped_records"]) == (4, "7, 8", "pairs: 96-127")


def test_it_ends_as_a_run_that_never_had_these_data(gone_back, tmp_path, monkeypatch):
    """To the last bit, the guard's counters too: a run that has the gap from the first."""
    from jaxvl.data.batches import Start
    from jaxvl.training import setup

    monkeypatch.setattr(setup, "start_of", lambda frame, name: Start(gaps=((96, 128),)))
    train_command.train(config(96, 128), tmp_path)
    assert learnt(tmp_path) == learnt(gone_back)
    assert not any(line["name"] == "rollback" for line in records(tmp_path))
    tiny.assert_same_state(gone_back, tmp_path, 12)


def stopped(experiment, workdir, monkeypatch, stop):
    """The run until so many of its steps were taken."""
    taken = []

    def after(self, metrics, wait=False):
        taken.append(1)
        return Verdict(stop=len(taken) == stop)

    with monkeypatch.context() as patch:
        patch.setattr(Agreement, "after", after)
        train_command.train(experiment, workdir)


@pytest.mark.parametrize("stop", [6, 7, 8, 9, 10])
def test_a_resume_gives_the_same_numbers(gone_back, tmp_path, monkeypatch, stop):
    """Stopped within the row, while it goes back, and after: each with a checkpoint that the
    undisturbed run has not."""
    stopped(config(96, 128), tmp_path, monkeypatch, stop)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps[-1] < 12
    train_command.train(config(96, 128), tmp_path)
    tiny.assert_same_state(gone_back, tmp_path, 12)
    frames = [Checkpoints(w / "checkpoints", read_only=True).frame() for w in (gone_back, tmp_path)]
    assert frames[0] == frames[1]
    assert learnt(tmp_path) == learnt(gone_back)


def test_a_checkpoint_within_the_row_is_not_gone_back_to(tmp_path):
    """Steps 7 to 13 are bad, of which 8 and 12 are saved and evaluated, and only the newest is
    kept. What comes after step 4 is evaluated again."""
    evals = dict(style=dict(name="zero_shot", source=tiny.TEST, every=4, gallery=0))
    guard = dict(stop_after=7, rollback=1)
    train_command.train(config(96, 208, guard=guard, evals=evals, steps=16), tmp_path)
    evaluated = [line["step"] for line in records(tmp_path) if line["kind"] == "eval"]
    assert evaluated == [4, 8, 12, 8, 12, 16]
    (told,) = [line for line in records(tmp_path) if line["name"] == "rollback"]
    bad = "7, 8, 9, 10, 11, 12, 13"
    assert (told["from"], told["to"], told["bad_steps"]) == (14, 4, bad)
    assert learnt(tmp_path)[7] == tuple(range(208, 208 + B))
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [16]


def test_bad_steps_before_the_first_checkpoint_and_at_the_end(tmp_path):
    """The first goes back to step 0; the last, which no later step follows, is noticed."""
    train_command.train(config(16, 48), tmp_path / "first")
    assert learnt(tmp_path / "first")[2] == tuple(range(48, 48 + B))
    train_command.train(config(160, 192), tmp_path / "last")
    positions = learnt(tmp_path / "last")
    assert positions[11] == tuple(range(192, 192 + B))
    assert positions[12] == tuple(range(208, 208 + B))


def test_all_data_since_the_checkpoint_can_be_left_out(tmp_path, monkeypatch):
    """One that was stopped and saved between goes back no less far."""
    guard = dict(stop_after=2, rollback=1, skip="since")
    for name in ("whole", "stopped"):
        if name == "stopped":
            stopped(config(96, 128, guard=guard), tmp_path / name, monkeypatch, 6)
            assert Checkpoints(tmp_path / name / "checkpoints", read_only=True).steps[-1] == 6
        train_command.train(config(96, 128, guard=guard), tmp_path / name)
        positions = learnt(tmp_path / name)
        assert positions[4] == tuple(range(48, 64))
        assert positions[5] == tuple(range(128, 128 + B))
        _, frame = Checkpoints(tmp_path / name / "checkpoints", read_only=True).frame()
        assert frame["gaps"] == {"pairs": [[64, 128]]}
    tiny.assert_same_state(tmp_path / "whole", tmp_path / "stopped", 12)


def test_the_last_rollback_is_the_last(tmp_path):
    """All data from step 7 on are bad."""
    with pytest.raises(TrainingDiverged, match="task 'pairs', step 8: 2 steps in a row"):
        train_command.train(config(96, 10**6), tmp_path)
    told = [line for line in records(tmp_path) if line["name"] == "rollback"]
    assert [line["to"] for line in told] == [4]
    before = tiny.saved_state(tmp_path, Checkpoints(tmp_path / "checkpoints").steps[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(before["params"]))
    # Allowed once more, it goes back again, from the checkpoint that it ended with.
    with pytest.raises(TrainingDiverged):
        train_command.train(config(96, 10**6, guard=dict(stop_after=2, rollback=2)), tmp_path)
    told = [line for line in records(tmp_path) if line["name"] == "rollback"]
    assert [line["number"] for line in told] == [1, 2]
    assert told[1]["skipped_records"] == "pairs: 128-159"


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, monkeypatch):
    """Step 0's is gone back to where that of step 4 was lost since it was written. Step 8's, which
    was saved within the row, makes room for that of the run that never had these data."""
    go_back = train_command.go_back

    def damaged(run, state):
        shutil.rmtree(tmp_path / "checkpoints" / "4" / "state" / "d")
        return go_back(run, state)

    monkeypatch.setattr(train_command, "go_back", damaged)
    options = dict(checkpoint=dict(every=4, keep=9), guard=dict(stop_after=3, rollback=1))
    train_command.train(config(96, 144, **options), tmp_path)
    (told,) = [line for line in records(tmp_path) if line["name"] == "rollback"]
    assert told["to"] == 0
    assert learnt(tmp_path)[7] == tuple(range(144, 144 + B))
    kept = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert kept.steps == [0, 4, 8, 12]
    for step in (4, 8, 12):
        assert kept.frame(step)[1]["gaps"] == {"pairs": [[96, 144]]}, step


def test_the_log_has_no_figures_of_the_past_after_the_rollback(tmp_path):
    """Written every fifth step, it is written once more before the run goes back."""
    train_command.train(
        config(96, 128, log=dict(every=5, tensorboard=False, report=False)), tmp_path
    )
    lines = records(tmp_path)
    names = [
        line["name"] for line in lines if line["kind"] == "train" or line["name"] == "rollback"
    ]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert names == ["pairs", "pairs", "rollback", "pairs", "pairs", "pairs"]
    assert steps == [5, 8, 5, 10, 12]


def test_bad_steps_are_described(gone_back):
    content = json.loads((gone_back / "spikes" / "7-pairs.json").read_text())
    assert content["figures"]["loss"] is None and content["figures"]["norm/typical"] > 0
    assert content["positions"] == "96-111"
    assert len(content["records"]) == len(content["rows"]) == B
    assert content["records"] != sorted(content["records"]), "they are in the order of the rows"
    # The records are those that the batch really had: their texts, from the source.
    source = config(0, 0).tasks["pairs"].data.source.open(print)
    for row, number in zip(content["rows"], content["records"]):
        assert row["record"] == number
        assert row["columns"]["name/en"] == source.read(number)["name/en"]
        assert row["columns"]["image"].endswith(" bytes")
    page = (gone_back / "spikes" / "7-pairs.html").read_text()
    assert page.count("data:image/png;base64,") == B
    assert sorted(p.stem for p in (gone_back / "spikes").glob("*.json")) == ["7-pairs", "8-pairs"]
    told = [line for line in records(gone_back) if line["name"] == "spike/pairs"]
    assert [line["step"] for line in told] == [7, 8]


def test_the_records_of_a_report_are_those_of_the_batch(gone_back):
    """By the pictures that the feed makes: its group is the record's class."""
    from jaxvl.data.tokenizers import Tokenizer
    from jaxvl.training.setup import Feed, derive

    experiment = config(96, 128)
    data = experiment.tasks["pairs"].data
    _, frame = Checkpoints(gone_back / "checkpoints", read_only=True).frame()
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    source = data.source.open(print)
    feed = Feed(
        data,
        source,
        Tokenizer.from_json(frame["tokenizer"]),
        seed=derive(experiment.seed, "data", "pairs"),
        mesh=mesh,
        preprocess=experiment.preprocess,
    )
    for _ in range(7):
        batch = next(feed)
    feed.close()
    content = json.loads((gone_back / "spikes" / "7-pairs.json").read_text())
    labels = [row["columns"]["class_label"] for row in content["rows"]]
    groups = np.asarray(batch["group_id"]).tolist()
    assert len(set(labels)) > 3
    assert len(set(zip(labels, groups))) == len(set(labels)) == len(set(groups))


@pytest.mark.slow
def test_two_processes_go_back_together(gone_back, tmp_path):
    """With the objective as a plugin; they learn from what one process does."""
    plugin = tmp_path / "poisoned.py"
    here = pathlib.Path(__file__).read_text()
    first, end = here.index("@OBJECTIVES.register"), here.index("def config(")
    imports = (
        "import dataclasses\nfrom typing import ClassVar\n\nimport jax.numpy as jnp\n\n"
        "from jaxvl.objectives import OBJECTIVES, Loss, Objective\n\n\n"
    )
    plugin.write_text(imports + here[first:end])
    node = to_dict(config(96, 128))
    own = {key: node[key] for key in ("tasks", "steps", "checkpoint", "guard")}
    path = tiny.config_file(tmp_path / "config.py", **own, plugins=(str(plugin),))
    running = processes.start(processes.train(path, tmp_path / "run"), 2, devices=2)
    processes.finish(running)
    assert learnt(tmp_path / "run") == learnt(gone_back)
    together, alone = tiny.losses(tmp_path / "run"), tiny.losses(gone_back)
    np.testing.assert_allclose([together[s] for s in alone], list(alone.values()), rtol=1e-4)


@pytest.mark.parametrize("spans", [(), ((3, 5),), ((0, 2), (2, 4), (9, 10)), ((5, 8), (6, 7))])
def test_gaps_against_a_list_of_what_is_left(spans):
    gaps = Gaps(spans)
    left = [p for p in range(60) if not any(a <= p < b for a, b in spans)]
    np.testing.assert_array_equal(gaps.place(np.arange(30)), left[:30])
    for position in range(40):
        assert gaps.count(position) == sum(p < position for p in left)
        for records in (1, 4, 7):
            there = [p for p in left if p >= position][: records + 1]
            assert gaps.forward(position, records) == there[records]
            covered = [p for a, b in gaps.covered(position, records) for p in range(a, b)]
            assert covered == there[:records]
