"""Processes on this machine, played by a script that ends as it is told, and real ones in drills."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import launched
import numpy as np
import pytest
import tiny

STEPS = 60  # of a drill

# What each process does at each start, by `PLAN`: a text for each start, a word for each process.
FAKE = """
import os, pathlib, signal, sys, time
own = [w.partition("=")[2] for w in sys.argv if w.startswith("--process=")]
i = int(own[0]) if own else 0
workdir = pathlib.Path(next(w for w in sys.argv if w.startswith("--workdir=")).partition("=")[2])
started = workdir / f"started{i}"
starts = len(started.read_text()) if started.exists() else 0
started.write_text("x" * (starts + 1))
(workdir / f"environment{i}").write_text(os.environ.get("XLA_FLAGS", ""))
(workdir / f"gpus{i}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
(workdir / f"words{i}").write_text(" ".join(sys.argv))
plan = os.environ["PLAN"].split("/")
word = plan[min(starts, len(plan) - 1)].split(",")[i]
print("out", i, word, flush=True)
print("err", i, word, file=sys.stderr, flush=True)
if word == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if word == "stoppable":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(600)
if word == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(word))
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)

    def words(plan, *options):
        return [
            sys.executable,
            str(launched.SUBMIT),
            "local",
            f"--root={tmp_path}",
            "--module=fake",
            f"--env=PLAN={plan}",
            *options,
            "--",
            f"--workdir={tmp_path}",
        ]

    return words


def run(words, **options):
    return subprocess.run(words, capture_output=True, text=True, timeout=120, **options)


def starts(folder: pathlib.Path, process: int = 0) -> int:
    return len((folder / f"started{process}").read_text())


def test_what_they_say_has_their_number_before_it(fake):
    done = run(fake("0,0", "--processes=2", "--cpu-devices=4"))
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] out 0 0", "[1] out 1 0"]
    assert sorted(done.stderr.splitlines()) == ["[0] err 0 0", "[1] err 1 0"]


def test_devices_are_shared_out(fake, tmp_path):
    run(fake("0,0", "--processes=2", "--cpu-devices=8"))
    flag = (tmp_path / "environment1").read_text().split()[-1]
    assert flag == "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize("status", [0, 2, 3])
def test_what_another_try_would_not_change_is_not_tried_again(fake, tmp_path, status):
    assert run(fake(f"{status}")).returncode == status
    assert starts(tmp_path) == 1


def test_a_run_that_fails_is_started_again_after_a_pause(fake, tmp_path):
    began = time.monotonic()
    done = run(fake("1/kill/0"))
    assert done.returncode == 0 and starts(tmp_path) == 3
    assert time.monotonic() - began > 1 + 2
    assert "launch: process 0 of 1 was ended by SIGKILL" in done.stderr
    assert "launch: starts it again (restart 2 of 10)" in done.stderr


def test_it_gives_up(fake, tmp_path):
    done = run(fake("1/kill", "--restarts=1"))
    assert done.returncode == 128 + 9 and starts(tmp_path) == 2
    assert done.stderr.splitlines()[-1] == "launch: gives up after 1 restarts"


def test_a_run_that_was_stopped_goes_on_at_once_and_counts_no_restart(fake, tmp_path):
    assert run(fake("75/75/75/0", "--restarts=0")).returncode == 0
    assert starts(tmp_path) == 4


def test_the_others_are_ended_when_one_dies(fake, tmp_path):
    began = time.monotonic()
    done = run(fake("hang,kill/0,0", "--processes=2", "--patience=2"))
    assert done.returncode == 0 and 2 < time.monotonic() - began < 20
    assert "launch: process 1 of 2 was ended by SIGKILL" in done.stderr
    assert starts(tmp_path, 0) == starts(tmp_path, 1) == 2


def test_a_run_goes_on_with_fewer_processes(fake, tmp_path):
    plan = "hang,hang,hang,kill,hang,hang/1,hang,hang/0,0"
    done = run(fake(plan, "--processes=6", "--cpu-devices=12", "--elastic=2", "--patience=1"))
    assert done.returncode == 0, done.stderr
    assert [starts(tmp_path, i) for i in range(6)] == [3, 3, 2, 1, 1, 1]
    assert "launch: goes on with 3 of 6 processes" in done.stderr
    assert "launch: goes on with 2 of 6 processes" in done.stderr
    flag = (tmp_path / "environment1").read_text().split()[-1]
    assert flag == "--xla_force_host_platform_device_count=2"
    assert "--config.resume.devices=12" in (tmp_path / "words1").read_text()


def test_a_device_that_is_gone_is_not_used_again(fake, tmp_path):
    done = run(
        fake(
            "hang,kill,hang,hang/0,0",
            "--processes=4",
            "--gpus-per-process=2",
            "--elastic=1",
            "--patience=1",
        )
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"gpus{i}").read_text() for i in range(2)] == ["0,1", "4,5"]
    assert "--config.resume.devices=8" in (tmp_path / "words0").read_text()


def test_fewer_than_the_least_are_not_gone_on_with(fake, tmp_path):
    plan = "1,hang,hang,hang/1,hang/0,0"
    done = run(fake(plan, "--processes=4", "--cpu-devices=4", "--elastic=2", "--patience=1"))
    assert done.returncode == 0, done.stderr
    assert [starts(tmp_path, i) for i in range(4)] == [3, 3, 1, 1]


def begin(words, tmp_path):
    launcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    launched.until(lambda: (tmp_path / "environment0").exists(), "the start", 60)
    time.sleep(0.5)
    return launcher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_ends_the_launcher(fake, tmp_path, number):
    launcher = begin(fake("stoppable,stoppable", "--processes=2"), tmp_path)
    launcher.send_signal(number)
    assert launcher.wait(timeout=30) == 75
    assert starts(tmp_path) == 1


def test_a_second_signal_kills(fake, tmp_path):
    launcher = begin(fake("hang"), tmp_path)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 128 + 9


def test_processes_do_not_outlive_the_launcher(fake, tmp_path):
    launcher = begin(fake("stoppable"), tmp_path)
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    (child,) = children.split()
    launcher.kill()
    launcher.communicate()
    launched.until(lambda: not alive(int(child)), "the end of the process", 30)


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Runs that nothing befalls, by their number of processes of two devices each."""
    made = {}

    def make(number):
        if number not in made:
            workdir = tmp_path_factory.mktemp(f"reference{number}") / "run"
            done = start(workdir, number)
            assert done.returncode == 0, done.stderr
            made[number] = workdir
        return made[number]

    return make


def options(number):
    return (f"--processes={number}", f"--cpu-devices={2 * number}")


def start(workdir, number, **changes):
    return launched.submit(
        "local", *options(number), after=launched.words(workdir, steps=STEPS, **changes)
    )


def run_and_kill(workdir, number, *more):
    """A run whose process 1 is killed after the first checkpoint: what was said, and the seconds
    until it was started again."""
    words = [sys.executable, str(launched.SUBMIT), "local", *options(number), *more, "--"]
    words += launched.words(workdir, steps=STEPS)
    log = workdir.with_suffix(".log")
    with log.open("w") as said:
        launcher = subprocess.Popen(words, stdout=said, stderr=said)
    try:
        launched.until(lambda: launched.saved(workdir) > 0, "a checkpoint", log=log)
        began = time.monotonic()
        os.kill(launched.train_processes(workdir)[1], signal.SIGKILL)
        launched.until(lambda: "starts it again" in log.read_text(), "the restart", log=log)
        seconds = time.monotonic() - began
        assert launcher.wait(timeout=900) == 0, log.read_text()
    finally:
        launcher.kill()
    return log.read_text(), seconds


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [2, 4])
def test_a_run_that_loses_a_process_is_started_again_and_ends_the_same(reference, tmp_path, number):
    workdir = tmp_path / "killed" / "run"
    text, seconds = run_and_kill(workdir, number)
    assert seconds < 60, text
    assert f"launch: process 1 of {number} was ended by SIGKILL" in text
    assert re.search(r"stopped sending heartbeats\):\s+\[\d\] 1\s", text), text
    tiny.assert_same_state(workdir, reference(number), STEPS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_loses_a_process_for_good_goes_on_with_half(reference, tmp_path):
    """With half of the devices and twice as many microbatches, every loss is what it was."""
    workdir = tmp_path / "elastic" / "run"
    text, _ = run_and_kill(workdir, 4, "--elastic=1")
    assert "launch: goes on with 2 of 4 processes" in text
    assert "4 of 8 devices: the same global batch, in more microbatches (pairs 2)" in text, text
    found = tiny.losses(workdir)
    expected = tiny.losses(reference(4))
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], rtol=1e-3)
