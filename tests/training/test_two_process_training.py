"""Two processes of four devices train as one of eight does, save one checkpoint together, and resume from it."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
SCRIPT = """
import pathlib, sys
import jax
address, processes, process, workdir = sys.argv[1:]
from jaxvl.sharding import hosts
if processes != "1":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    hosts.initialise({"coordinator": address, "processes": processes, "process": process})
import tiny
from jaxvl.train import train
assert jax.device_count() == 8
evals = dict(pairs=dict(name="retrieval", corpus=tiny.CORPUS, split="test_a"))
pairs = tiny.config().to_dict()["tasks"]["pairs"]
tasks = dict(pairs=pairs, more={**pairs, "data": {**pairs["data"], "split": "train_b"}})
schedule = dict(name="weighted", weights=dict(pairs=2.0, more=1.0))
train(tiny.experiment(mesh=dict(data=4, fsdp=2), evals=evals, tasks=tasks, schedule=schedule), pathlib.Path(workdir))
"""


def start(address, processes, process, workdir):
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-c", SCRIPT, address, str(processes), str(process), str(workdir)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def train(processes, workdir):
    """Losses by (step, task) and the last evaluation of a run of two tasks in `workdir` by so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = [start(address, processes, i, workdir) for i in range(processes)]
    try:
        for process in running:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in running:
            process.kill()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [{k: v for k, v in line.items() if k not in ("seconds", "time")} for line in lines if line["kind"] == "eval"]
    return {(line["step"], line["name"]): line["loss"] for line in lines if line["kind"] == "train" and line["name"] != "all"}, evaluated[
        -1
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    alone, figures = train(1, tmp_path / "one")
    together, figures_together = train(2, tmp_path / "two")
    assert sorted(together) == sorted(alone) and [step for step, _ in sorted(alone)] == [1, 2, 3, 4, 5, 6]  # only the first process writes
    assert {task for _, task in alone} == {"pairs", "more"}
    np.testing.assert_allclose([together[s] for s in alone], list(alone.values()), rtol=1e-5)
    assert figures_together == figures
    # Killed after its first checkpoint, the two resume; so does one process with what two have saved.
    for processes in (2, 1):
        again = tmp_path / f"again{processes}"
        shutil.copytree(tmp_path / "two" / "checkpoints", again / "checkpoints")
        shutil.rmtree(again / "checkpoints" / "6")
        resumed, _ = train(processes, again)
        later = [key for key in sorted(together) if key[0] > 3]
        assert sorted(resumed) == later
        np.testing.assert_allclose([resumed[k] for k in later], [together[k] for k in later], rtol=1e-5)
