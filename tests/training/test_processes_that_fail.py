"""What befalls one of two processes ends both, within a minute, with what can be saved."""

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


def run(workdir, fault=None, evaluated=False):
    """Exit statuses and what each of two processes has said; seconds from the fault to the end of
    the last one."""
    workdir.parent.mkdir(exist_ok=True)
    evals = dict(style=dict(name="zero_shot", source=tiny.TEST, every=GOOD, gallery=0))
    every = (
        dict(evals=evals, checkpoint=dict(every=GOOD))
        if evaluated
        else dict(checkpoint=dict(every=100))
    )
    command = processes.train(
        tiny.config_file(workdir.with_suffix(".py"), steps=8, **every), workdir
    )
    if fault is not None:
        command = [processes.__file__, fault, *command[2:]]
    running = processes.start(command, 2)
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
            and "process 1 of 2 ends with an error" in said[1]
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
