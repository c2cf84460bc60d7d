"""Runs that are killed at random, again and again, end with the state of a run that nobody touched,
bit for bit."""

import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import time

import processes
import pytest
import tiny

from jaxvl.training.checkpoint import Checkpoints

STEPS = 200
PATIENCE = 240  # seconds that a process may take to get anywhere
EVALS = dict(style=dict(name="zero_shot", source=tiny.TEST, every=50, gallery=0))


@dataclasses.dataclass
class Run:
    """A run in `workdir` by so many processes of `2 / processes` devices each."""

    workdir: pathlib.Path
    processes: int

    def start(self) -> list[subprocess.Popen]:
        config = self.workdir.with_suffix(".py")
        tiny.config_file(config, steps=STEPS, checkpoint=dict(every=10, keep=4), evals=EVALS)
        with open(self.workdir.with_suffix(".log"), "a") as log:
            return processes.start(
                processes.train(config, self.workdir),
                self.processes,
                devices=2,
                stdout=log,
                stderr=log,
            )

    def step(self) -> int:
        """The last step that was logged."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in reversed(lines):
            if line.endswith("}") and '"train"' in line:
                return json.loads(line)["step"]
        return 0

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        folder = self.workdir / "checkpoints"
        return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())

    def newest(self) -> pathlib.Path | None:
        folder = self.workdir / "checkpoints"
        steps = (
            [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        )
        return max(steps, key=lambda path: int(path.name), default=None)

    def frame(self) -> dict:
        """The frame after the last step."""
        name, frame = Checkpoints(self.workdir / "checkpoints", read_only=True).frame()
        assert name == STEPS
        return frame


def kill(run: Run, draw: random.Random) -> bool:
    """Starts the run, and kills a process of it after a random number of steps, half of the times
    during a save.

    Returns whether it came to that: a run may be done before.
    """
    started = run.start()
    after = run.step() + draw.randrange(1, 50)
    in_save = draw.random() < 0.5
    number = draw.choice([signal.SIGKILL, signal.SIGTERM])
    end = time.monotonic() + PATIENCE
    victim = draw.choice(started)
    try:
        while all(process.poll() is None for process in started):
            assert time.monotonic() < end, f"no progress; see {run.workdir}.log"
            if run.step() >= after and (run.saving() or not in_save):
                victim.send_signal(number)
                break
            time.sleep(0.001)
        for (
            process
        ) in started:  # those that are left must end by themselves, however the other one ended
            process.wait(PATIENCE)
    finally:
        for process in started:
            process.kill()
    killed = number == signal.SIGKILL and victim.returncode == -signal.SIGKILL
    return killed or (number == signal.SIGTERM and run.step() < STEPS)


def finish(run: Run) -> None:
    for process in run.start():
        assert process.wait(PATIENCE) == 0, f"see {run.workdir}.log"


def damage(checkpoint: pathlib.Path, draw: random.Random) -> None:
    """Cuts, empties or removes files of a checkpoint."""
    files = [
        path
        for path in sorted((checkpoint / "state").rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    how = draw.choice(["cut", "empty", "remove"])
    for file in files:
        if how == "remove":
            file.unlink()
        elif how == "empty":
            file.write_bytes(b"")
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def assert_same_end(run: Run, reference: Run) -> None:
    assert run.frame() == reference.frame()
    tiny.assert_same_state(run.workdir, reference.workdir, STEPS)
    assert [p for p in run.workdir.rglob("*") if "tmp" in p.name] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "kills, number, damaged",
    [(40, 1, False), (20, 1, True), (10, 2, False)],
    ids=["40 kills", "20 kills and damaged checkpoints", "10 kills of one of two processes"],
)
def test_a_run_that_is_killed_ends_as_if_it_was_not(tmp_path, kills, number, damaged):
    draw = random.Random(kills)
    reference = Run(tmp_path / "reference", number)
    finish(reference)
    done = runs = 0
    while done < kills:
        runs += 1
        run = Run(tmp_path / f"run{runs}", number)
        while done < kills and kill(run, draw):
            done += 1
            newest = run.newest()
            if damaged and newest is not None and int(newest.name) > 10:
                damage(newest, draw)
        finish(run)
        assert_same_end(run, reference)
    print(f"{done} kills, {runs} runs, all of them the same to the last bit")
