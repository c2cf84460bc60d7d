"""What befalls one of two processes ends both, within a minute, with what can be saved."""

import json
import socket
import threading
import time

import numpy as np
import processes
import pytest
import tiny
from processes import GOOD
from tiny import losses

from jaxvl.command import STOPPED
from jaxvl.training.checkpoint import Checkpoints

MINUTE = 60


def run(workdir, fault=None, evaluated=False, number=2, **changes):
    """Exit statuses and what each of `number` processes has said; seconds from the fault to the end
    of the last one."""
    workdir.parent.mkdir(exist_ok=True)
    evals = dict(style=dict(name="zero_shot", source=tiny.TEST, every=GOOD, gallery=0))
    every = (
        dict(evals=evals, checkpoint=dict(every=GOOD))
        if evaluated
        else dict(checkpoint=dict(every=100))
    )
    command = processes.train(
        tiny.config_file(workdir.with_suffix(".py"), **{"steps": 8, **every, **changes}), workdir
    )
    if fault is not None:
        command = [processes.__file__, fault, *command[2:]]
    running = processes.start(command, number, devices=2 * number if number > 2 else 8)
    said = [[] for _ in running]
    befell = []

    def listen(process, lines):
        for line in process.stderr:
            lines.append(line)
            if "FAULT" in line:
                befell.append(time.monotonic())

    listening = [threading.Thread(target=listen, args=pair) for pair in zip(running, said)]
    [t.start() for t in listening]
    try:
        codes = [process.wait(timeout=840) for process in running]
    finally:
        [process.kill() for process in running]
        [t.join() for t in listening]
    seconds = time.monotonic() - befell[0] if befell else None
    return codes, [" ".join("".join(lines).split()) for lines in said], seconds


def saved(workdir):
    step, frame = Checkpoints(workdir / "checkpoints", read_only=True).frame()
    return step, frame["positions"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses of a run that nothing befalls."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    codes, said, _ = run(workdir)
    assert codes == [0, 0], said
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["data", "preempted"])
def test_all_processes_save_the_same_step_and_end(whole, tmp_path, fault):
    workdir = tmp_path / fault / "run"
    codes, said, seconds = run(workdir, fault)
    assert seconds is not None and seconds < MINUTE, said
    step, positions = saved(workdir)
    assert positions == {"pairs": 16 * step}
    if fault == "data":
        assert codes == [1, 1] and step == GOOD
        assert (
            "process 1 of 2 cannot read its data: task 'pairs': DataError: the disk is gone"
            in said[0]
        )
        assert "DataError the disk is gone" in said[1]
    else:
        assert codes == [STOPPED, STOPPED] and GOOD < step < 8
        assert f"stopped by a signal to process 1 after step {step}" in said[0]
    assert run(workdir)[0] == [0, 0]
    assert losses(workdir).keys() == whole.keys()
    np.testing.assert_allclose(list(losses(workdir).values()), list(whole.values()), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fault, code", [("exception", 1), ("kill", -9)])
def test_a_process_that_is_lost_takes_the_others_with_it(tmp_path, fault, code):
    codes, said, seconds = run(tmp_path / fault / "run", fault)
    assert seconds is not None and seconds < MINUTE, said
    assert codes[1] == code and codes[0] != 0, said
    assert "unhealthy (stopped sending heartbeats): 1 " in said[0], said[0]
    if fault == "exception":
        assert (
            "ZeroDivisionError: a bug in the loop" in said[1]
            and "ends with an error; the others follow" in said[1]
        )


@pytest.mark.slow
def test_an_evaluator_that_fails_in_one_process_only_ends_both_and_loses_no_step_that_was_saved(
    tmp_path,
):
    workdir = tmp_path / "evaluator" / "run"
    codes, said, seconds = run(workdir, "evaluator", evaluated=True)
    assert seconds is not None and seconds < MINUTE, said
    assert 0 not in codes, said
    assert f"evaluator style at {GOOD}: only some processes got there" in said[1], said[1]
    assert saved(workdir) == (GOOD, {"pairs": 16 * GOOD})
    assert run(workdir, evaluated=True)[0] == [0, 0]
    assert sorted(losses(workdir)) == list(range(1, 9))


@pytest.mark.slow
def test_a_process_that_never_comes_is_named_by_all_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_START_SECONDS", "60")
    config = tiny.config_file(tmp_path / "config.py")
    command = [processes.__file__, "late", *processes.train(config, tmp_path / "run")[2:]]
    running = processes.start(command, 4)
    try:
        said = [process.communicate(timeout=300)[1] for process in running[:3]]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running[:3]] == [1, 1, 1], said
    for text in said:
        line = " ".join(text.split())
        assert "start failed 1 of 4 processes have not come within 60 s: 3; here are 0" in line
        assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, changes, expected",
    [
        (
            "slow reads",
            dict(steps=32, tasks=dict(pairs=tiny.task(reader=dict(threads=2, cache_mb=0)))),
            "straggler: process 1 of 2 (HOST) has waited for its data for",
        ),
        (
            "slow disk",
            dict(steps=24, checkpoint=dict(every=4)),
            "slow disk: process 1 of 2 (HOST) has written its part of the checkpoints for",
        ),
        (
            "slow device",
            dict(steps=60),
            "slow device: process 1 of 2 (HOST) takes",
        ),
    ],
    ids=["reads", "disk", "device"],
)
def test_a_process_that_makes_the_others_wait_is_named(tmp_path, fault, changes, expected):
    workdir = tmp_path / "slow" / "run"
    codes, said, _ = run(workdir, fault, **changes)
    assert codes == [0, 0], said
    assert expected.replace("HOST", socket.gethostname()) in said[0], said[0]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["name"].startswith("straggler/")]
    assert told and {line["process"] for line in told} == {1}
    part = {"slow reads": "read", "slow disk": "checkpoint", "slow device": "device"}[fault]
    assert {line["part"] for line in told} == {part}


@pytest.mark.slow
def test_sigterm_while_the_step_compiles_ends_the_process_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    model = tiny.config().to_dict()["model"]
    for tower in ("image", "text"):
        model[tower]["depth"] = 12
    codes, said, seconds = run(tmp_path / "compiling" / "run", "compiling", model=model)
    assert codes == [STOPPED, STOPPED], said
    assert seconds < 10, seconds
    for text in said:
        assert "stopped by SIGTERM before the first step; nothing is lost" in text
        assert "compiled in" not in text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs that nothing befalls, by their number of processes."""
    made = {}

    def make(number, **options):
        if number not in made:
            made[number] = tmp_path_factory.mktemp(f"undisturbed{number}") / "run"
            codes, said, _ = run(made[number], number=number, **options)
            assert codes == [0] * number, said
        return made[number]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("fault", ["evaluating", "saving"])
def test_sigterm_at_another_bad_moment_loses_nothing(undisturbed, tmp_path, fault, number):
    """An evaluation, which would take minutes, is left. A write of 5 s is waited for, and so is that
    of the step after which the run stops."""
    workdir = tmp_path / fault / "run"
    options = dict(checkpoint=dict(every=GOOD), evaluated=fault == "evaluating", number=number)
    codes, said, seconds = run(workdir, fault, **options)
    assert codes == [STOPPED] * number, said
    step, _ = saved(workdir)
    if fault == "evaluating":
        assert seconds < 20 and step == GOOD, (seconds, step)
        assert f"stopped by SIGTERM while the weights of step {GOOD} were evaluated" in said[0]
    else:
        assert seconds < MINUTE and GOOD < step < 8, (seconds, step)
        assert f"after step {step}; saved, and resumed by the same command" in said[0], said[0]
    codes, said, _ = run(workdir, **options)
    assert codes == [0] * number, said
    reference = undisturbed(number, checkpoint=dict(every=GOOD))
    tiny.assert_same_state(workdir, reference, 8)
    assert losses(workdir) == losses(reference)
