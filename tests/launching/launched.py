"""Runs in miniature that launchers start, and what they leave."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import processes
import tiny

ODD = '--config.tasks.a.data.name=it\'s a "test" $HOME'  # no shell may change a word
WORDS = ("--config=configs/siglip.py", "--workdir=gs://bucket/run", ODD)
# Prints its arguments; stands for Python.
PRINTER = (
    "#!/bin/bash\nexec {python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"\n"
)
SUBMIT = processes.ROOT / "launch" / "submit.py"
STEPS = 150
# Of a process with two devices, otherwise as this one has them: other flags, other roundings.
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
EVERY = 10


def submit(target: str, *options: str, after: tuple[str, ...] = (), **kwargs):
    """`launch/submit.py TARGET OPTIONS -- AFTER`, done."""
    words = [sys.executable, str(SUBMIT), target, *options, "--", *after]
    return subprocess.run(words, capture_output=True, text=True, **kwargs)


def dry(target: str, *options: str, after: tuple[str, ...] = WORDS) -> str:
    """What would be submitted."""
    done = submit(target, "--dry-run", *options, after=after)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bash(text: str, environment: dict[str, str]) -> list[list[str]]:
    """What each line of a script's output says, as JSON."""
    done = subprocess.run(
        ["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def words(workdir: pathlib.Path, **changes) -> tuple[str, ...]:
    """Words of a run in miniature; its config is written beside `workdir`."""
    config = workdir.with_suffix(".py")
    workdir.parent.mkdir(parents=True, exist_ok=True)
    tiny.config_file(config, **{**dict(steps=STEPS, checkpoint=dict(every=EVERY)), **changes})
    return (f"--config={config}", f"--workdir={workdir}")


def step(workdir: pathlib.Path) -> int:
    """The last step that was logged."""
    path = workdir / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:  # not yet; a run that goes on writes it anew
        return 0
    for line in reversed(lines):
        if line.endswith("}") and '"train"' in line:
            return json.loads(line)["step"]
    return 0


def saved(workdir: pathlib.Path) -> int:
    """The newest checkpoint's step."""
    folder = workdir / "checkpoints"
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def until(
    true: Callable[[], bool],
    what: str,
    seconds: float = 300,
    log: pathlib.Path | None = None,
) -> None:
    """Args: log: shown where it does not come true."""
    end = time.monotonic() + seconds
    while not true():
        late = time.monotonic() > end
        assert not late, f"not within {seconds} s: {what}\n{log.read_text() if log else ''}"
        time.sleep(0.1)


def train_processes(workdir: pathlib.Path) -> list[int]:
    """Process numbers of those that train in `workdir`, by their own number; on this machine."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode().split("\0")
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"--workdir={workdir}" in argv and "jaxvl.train" in argv and "-m" in argv[:3]:
            own = [word.partition("=")[2] for word in argv if word.startswith("--process=")]
            rank = [v.partition("=")[2] for v in environment if v.startswith("SLURM_PROCID=")]
            found[int((own or rank or ["0"])[0])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]
