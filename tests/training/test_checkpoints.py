"""Checkpoints that are damaged, renamed, or of another run; which are kept; what is evaluated
when."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny import assert_same_state, saved_state

from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.evals.result import EvalResult
from jaxvl.evals.zero_shot import ZeroShot
from jaxvl.training.checkpoint import CheckpointConfig, Checkpoints
from jaxvl.training.figures import Figures
from jaxvl.training.run import EvaluationError
from jaxvl.training.start import initial_weights

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")
EVALS = dict(style=dict(name="zero_shot", source=tiny.TEST, every=2, gallery=0))


def train(workdir, **changes):
    return train_command.train(tiny.experiment(**changes), workdir)


def damage(checkpoint):
    """Cuts every file of the state in half."""
    for file in (checkpoint / "state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 6 steps with checkpoints at 3 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    train(workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be broken."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


# --------------------------------------------------------------------------------------------------
# Damage


def test_a_damaged_checkpoint_is_set_aside_and_a_good_one_takes_its_place(finished, copy):
    damage(copy / "checkpoints" / "6")
    train(copy)
    assert Checkpoints(copy / "checkpoints", read_only=True).steps == [3, 6]
    assert_same_state(finished, copy, 6)
    assert (copy / "checkpoints.damaged" / "6" / "state").is_dir(), "what was passed over is kept"


def test_the_newest_ones_are_kept_whatever_damaged_ones_are_numbered(copy):
    """Else a damaged one of a later step counts as the newest, and the good ones before it are
    deleted."""
    damage(copy / "checkpoints" / "6")
    train(copy, steps=5, checkpoint=dict(every=4, keep=1), resume=dict(accept=("steps",)))
    assert Checkpoints(copy / "checkpoints", read_only=True).steps == [5]
    assert saved_state(copy, 5)


def test_a_flipped_bit_is_damage_too(finished, copy, caplog):
    newest = copy / "checkpoints" / "6"
    # In several places of every file with arrays: not all of their bytes are read.
    for file in (newest / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        for tenths in (1, 3, 5, 7, 9):
            content[len(content) * tenths // 10] ^= 1
        file.write_bytes(content)
    train(copy)
    assert_same_state(finished, copy, 6)
    (said,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert "checkpoint 6 is damaged (state: ValueError: DATA_LOSS" in said and str(newest) in said


def test_a_run_goes_on_from_a_checkpoint_without_checksums(finished, copy):
    _, frame = Checkpoints(copy / "checkpoints", read_only=True).frame(3)
    state = saved_state(copy, 3)
    shutil.rmtree(copy / "checkpoints")
    tiny.save_as_before(copy / "checkpoints", 3, state, frame)
    train(copy)
    assert_same_state(finished, copy, 6)


def test_two_damaged_ones_of_one_step_are_both_kept(finished, copy):
    for _ in range(2):
        damage(copy / "checkpoints" / "6")
        train(copy)
    assert sorted(p.name for p in (copy / "checkpoints.damaged").iterdir()) == ["6", "6-2"]
    assert_same_state(finished, copy, 6)


def test_a_damaged_frame_is_damage_too(finished, copy):
    for file in (copy / "checkpoints" / "6" / "frame").rglob("*"):
        if file.is_file():
            file.write_bytes(b"{")
    train(copy)
    assert_same_state(finished, copy, 6)


def test_reading_moves_nothing(copy):
    damage(copy / "checkpoints" / "6")
    before = sorted(copy.rglob("*"))
    checkpoints = Checkpoints(copy / "checkpoints", read_only=True)
    name, frame = checkpoints.frame()
    assert (name, frame["step"]) == (6, 6)
    assert sorted(copy.rglob("*")) == before


def test_a_checkpoint_knows_its_own_step(finished, copy):
    """A folder of step 3 that was renamed to 5 goes on with step 4, not 6."""
    shutil.rmtree(copy / "checkpoints" / "6")
    (copy / "metrics.jsonl").unlink()
    (copy / "checkpoints" / "3").rename(copy / "checkpoints" / "5")
    train(copy)
    steps = [json.loads(line)["step"] for line in open(copy / "metrics.jsonl") if '"train"' in line]
    assert steps == [4, 5, 6]
    assert_same_state(finished, copy, 6)


def test_a_checkpoint_whose_own_step_is_there_already_is_set_aside(finished, copy):
    shutil.copytree(copy / "checkpoints" / "3", copy / "checkpoints" / "7")
    train(copy)
    assert Checkpoints(copy / "checkpoints", read_only=True).steps == [3, 6]
    assert_same_state(finished, copy, 6)


# --------------------------------------------------------------------------------------------------
# Other configs


CROPPED = tiny.fields(image=dict(crop=(0.5, 1.0)))
OTHER_GROUPS = tiny.fields(group_id=dict(column="name/en"))


def tasks(**data):
    return dict(pairs=tiny.task(**data))


@pytest.mark.parametrize(
    "key, there, here, changes",
    [
        ("seed", "0", "1", dict(seed=1)),
        ("steps", "6", "9", dict(steps=9)),
        ("dtype", "'float32'", "'bfloat16'", dict(dtype="bfloat16")),
        ("tasks.pairs.data.batch", "16", "8", dict(tasks=tasks(batch=8))),
        (
            "tasks.pairs.data.source.split",
            "'train_a'",
            "'train_b'",
            dict(tasks=tasks(source=dict(tiny.SHAPES, split="train_b"))),
        ),
        (
            "tasks.pairs.data.source.variants",
            "1",
            "2",
            dict(tasks=tasks(source=dict(tiny.TRAIN, variants=2))),
        ),
        (
            "tasks.pairs.data.fields.image.crop",
            "[1.0, 1.0]",
            "[0.5, 1.0]",
            dict(tasks=tasks(fields=CROPPED)),
        ),
        (
            "tasks.pairs.data.fields.group_id.column",
            "'class_label'",
            "'name/en'",
            dict(tasks=tasks(fields=OTHER_GROUPS)),
        ),
        (
            "tasks.pairs.data.fields.label.column",
            "None",
            "'class_label'",
            dict(tasks=tasks(fields=tiny.fields(label=dict(name="label")))),
        ),
        (
            "tasks.pairs.data.sampler.name",
            "None",
            "'in_order'",
            dict(tasks=tasks(sampler=dict(name="in_order"))),
        ),
        (
            "optim.clip_norm",
            "1.0",
            "None",
            dict(optim=dict(lr=1e-3, warmup=2, ema=0.9, clip_norm=None)),
        ),
        (
            "optim.weight_decay",
            "0.0",
            "0.1",
            dict(optim=dict(lr=1e-3, warmup=2, ema=0.9, weight_decay=0.1)),
        ),
        (
            "optim.name",
            "'adamw'",
            "'lion'",
            dict(optim=dict(lr=1e-3, warmup=2, ema=0.9, name="lion")),
        ),
        ("optim.ema", "0.9", "None", dict(optim=dict(lr=1e-3, warmup=2))),
        (
            "optim.freeze",
            "None",
            "'^text/'",
            dict(optim=dict(lr=1e-3, warmup=2, ema=0.9, freeze="^text/")),
        ),
    ],
)
def test_what_cannot_be_continued_exactly_is_refused_by_name(copy, key, there, here, changes):
    before = sorted(copy.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        train(copy, **changes)
    said = str(caught.value)
    assert said.startswith(
        f"{key}: {there} in the checkpoint of step 6 in the workdir, {here} here"
    )
    assert f"resume.accept=('{key}',)" in said
    assert "\n" not in said
    assert sorted(copy.rglob("*")) == before, "a good checkpoint is not touched"


def test_another_model_or_preprocessing_is_refused_whatever_is_accepted(copy):
    model = tiny.config().to_dict()["model"]
    accept = dict(accept=("model", "preprocess"))
    with pytest.raises(ConfigError, match=r"model\.embed_dim: differs .*\(16 there, 8 here\)"):
        train(copy, model={**model, "embed_dim": 8}, resume=accept)
    with pytest.raises(ConfigError, match=r"preprocess\.mean: differs"):
        train(copy, preprocess=dict(image_size=16, mean=(0.4, 0.5, 0.5)), resume=accept)


@pytest.mark.parametrize(
    "optim",
    [
        dict(clip_norm=None),
        dict(weight_decay=0.1),
        dict(name="lion"),
        dict(ema=None),
        dict(freeze="^text/"),
    ],
)
def test_an_accepted_change_of_what_the_state_holds_is_one_line(copy, optim):
    shutil.rmtree(copy / "checkpoints" / "6")
    before = sorted(copy.rglob("*"))
    (key,) = optim
    with pytest.raises(
        ConfigError, match=rf"^optim\.{key}: .* which changes what the state holds .*start=OLD"
    ):
        train(
            copy,
            optim={**dict(lr=1e-3, warmup=2, ema=0.9), **optim},
            resume=dict(accept=(f"optim.{key}",)),
        )
    assert sorted(copy.rglob("*")) == before


def test_free_options_may_change(finished, copy):
    shutil.rmtree(copy / "checkpoints" / "6")
    train(
        copy,
        tasks=tasks(reader=dict(threads=1, prefetch_mb=2, cache_mb=7)),
        checkpoint=dict(every=2),
        log=dict(every=3, tensorboard=False, report=False),
    )
    assert_same_state(finished, copy, 6)


def test_an_accepted_rate_holds_from_the_checkpoint_on(copy):
    shutil.rmtree(copy / "checkpoints" / "6")
    train(copy, optim=dict(lr=1e-9, warmup=2, ema=0.9), resume=dict(accept=("optim.lr",)))
    params = [jax.tree.leaves(saved_state(copy, step)) for step in (3, 6)]
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(*params, strict=True)
        if a.dtype == np.float32 and a.ndim > 1
    )
    assert moved > 0  # moments and averages do
    rates = [json.loads(line)["lr"] for line in open(copy / "metrics.jsonl") if '"train"' in line]
    assert max(rates[-3:]) <= 1e-9 < min(rates[:3])


# --------------------------------------------------------------------------------------------------
# What is kept, and evaluations


def test_keeps_the_newest_and_the_best_by_their_own_figures(tmp_path):
    checkpoints = Checkpoints(
        tmp_path, CheckpointConfig(keep=1, keep_best=1, best_metric="val/acc")
    )
    for step, figure in ((1, 0.1), (2, 0.9), (3, None), (4, 0.3), (5, float("nan"))):
        assert checkpoints.save(step, {"x": jax.numpy.ones(3)}, {"config": {}})
        if figure is not None:
            checkpoints.score(step, {"val/acc": figure})
    checkpoints.finish()
    assert checkpoints.steps == [2, 5]


def test_the_smallest_is_the_best_after_a_minus_sign(tmp_path):
    checkpoints = Checkpoints(
        tmp_path, CheckpointConfig(keep=1, keep_best=1, best_metric="-val/loss")
    )
    for step, figure in ((1, 3.0), (2, 1.0), (3, 2.0)):
        checkpoints.save(step, {"x": jax.numpy.ones(3)}, {"config": {}})
        checkpoints.score(step, {"val/loss": figure})
    checkpoints.finish()
    assert checkpoints.steps == [2, 3]


@pytest.fixture
def measured(monkeypatch):
    """Evaluators that measure the step which they were called at, by a table; returns the steps
    that were evaluated."""
    called = []

    def run(self, encoders):
        called.append(len(called))
        return EvalResult({"acc@1": {0: 0.2, 1: 0.9}.get(called[-1], 0.1)}, [])

    monkeypatch.setattr(ZeroShot, "run", run)
    return called


def test_the_best_checkpoint_is_of_the_step_that_was_measured(tmp_path, measured):
    """Evaluated at 2 and 4 (.2, .9); saved at 5 besides: 4 is the best, not the next one that is
    saved."""
    options = dict(every=5, keep=1, best_metric="style/acc@1")
    train(tmp_path, evals=EVALS, checkpoint=options, steps=5)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [4, 5]
    # Resumed, it still knows which one is the best; at 6 it is .1.
    train(tmp_path, evals=EVALS, checkpoint=options, resume=dict(accept=("steps",)))
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [4, 6]


def test_a_finished_run_prints_its_figures_at_once_and_compiles_nothing(
    tmp_path, measured, monkeypatch, capsys
):
    first = train(tmp_path / "run", evals=EVALS)
    (tmp_path / "config.py").write_text(
        f"import tiny\n\n\ndef get_config():\n    return tiny.config(evals={EVALS})\n"
    )
    monkeypatch.setattr("jaxvl.training.setup.compile_turns", None)
    capsys.readouterr()
    shown = []
    monkeypatch.setattr(
        train_command, "show", lambda figures: shown.append((figures, capsys.readouterr().err))
    )
    assert (
        train_command.main([f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"])
        == 0
    )
    assert shown == [(first, "")], "once, before anything else is said"
    assert len(measured) == 3, "and nothing is evaluated again"


def test_an_evaluator_that_fails_loses_no_step_and_is_tried_again(tmp_path, monkeypatch):
    real = ZeroShot.run

    def broken(self, encoders):
        raise KeyError("colour")

    monkeypatch.setattr(ZeroShot, "run", broken)
    with pytest.raises(EvaluationError, match="style: KeyError: 'colour'"):
        train(tmp_path, evals=EVALS, checkpoint=dict(every=100))
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [6], (
        "trained to the end and saved"
    )
    events = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    failed = [e for e in events if e["name"] == "failed/style"]
    assert [e["step"] for e in failed] == [2, 4, 6]
    assert "in broken" in failed[0]["traceback"]

    monkeypatch.setattr(ZeroShot, "run", real)
    monkeypatch.setattr("jaxvl.training.setup.compile_turns", None)  # nothing is trained again
    latest = train(tmp_path, evals=EVALS, checkpoint=dict(every=100))
    assert 0 <= latest["style/acc@1"] <= 1


def test_exit_status_3_tells_of_failed_evaluators(tmp_path, monkeypatch, capsys):
    def failed(*_):
        raise EvaluationError({"style": "KeyError: 'colour'"}, {"texts/r@1": 0.5})

    monkeypatch.setattr(train_command, "train", failed)
    (tmp_path / "config.py").write_text(
        "import tiny\n\n\ndef get_config():\n    return tiny.config()\n"
    )
    assert (
        train_command.main([f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"])
        == 3
    )
    said = capsys.readouterr()
    assert "style: KeyError: 'colour'" in said.err
    assert "r@1" in said.out


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(tmp_path, measured, monkeypatch):
    """Killed after the save of step 4, before its evaluation: the resume begins with it."""

    class Killed(BaseException):
        pass

    table = ZeroShot.run

    def killed(self, encoders):
        if len(measured) == 1:
            raise Killed
        return table(self, encoders)

    monkeypatch.setattr(ZeroShot, "run", killed)
    options = dict(evals=EVALS, checkpoint=dict(every=4))
    with pytest.raises(Killed):
        train(tmp_path, **options)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [4]
    monkeypatch.setattr(ZeroShot, "run", table)
    train(tmp_path, **options)
    figures = Figures(tmp_path, until=6)
    assert {step: figures.at(step)["style/acc@1"] for step in figures.steps} == {
        2: 0.2,
        4: 0.9,
        6: 0.1,
    }


def test_a_cut_line_of_metrics_costs_no_line_of_the_resume(finished, copy):
    shutil.rmtree(copy / "checkpoints" / "6")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    train_lines = [i for i, line in enumerate(lines) if '"train"' in line]
    (copy / "metrics.jsonl").write_text(
        "".join(lines[: train_lines[3]]) + lines[train_lines[3]][:30]
    )
    train(copy)
    whole = []
    for line in (copy / "metrics.jsonl").read_text().splitlines():
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            assert line == lines[train_lines[3]][:30]
    assert [r["step"] for r in whole if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_weights_with_another_tokenizer_are_refused(finished):
    changed = dict(start=str(finished), tokenizer=dict(vocab_size=80))
    with pytest.raises(
        ConfigError,
        match=r"^tokenizer: .*vocab_size=80.* is not that of the weights of start .*vocab_size=64",
    ):
        initial_weights(tiny.experiment(**changed))
    assert initial_weights(tiny.experiment(start=str(finished))).tokenizer.vocab_size <= 64
