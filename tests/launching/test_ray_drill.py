"""A real Ray on this machine: one of two workers is killed, Ray Train starts both again, and the run
ends with the state of a run that nothing befell; a node is lost, and the run goes on without it."""

import os
import signal
import subprocess
import sys

import launched
import numpy as np
import processes
import pytest
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": launched.FLAGS,
    "PYTHONPATH": os.pathsep.join([str(processes.ROOT), *filter(None, sys.path)]),
}


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", minversion="2.60")


def workers():
    """Process numbers of Ray's workers that train."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    lines = [line.split() for line in found.splitlines()]
    return sorted(int(line[0]) for line in lines if line[1].startswith("ray::RayTrainWorker"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of two processes that nothing befalls."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    done = launched.submit(
        "local", "--processes=2", "--cpu-devices=4", after=launched.words(workdir)
    )
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_worker_that_is_killed(ray, reference, tmp_path):
    workdir = tmp_path / "ray" / "run"
    words = [sys.executable, str(launched.SUBMIT), "ray", "--workers=2", "--cpus-per-worker=1"]
    words += [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
    log = tmp_path / "ray.log"
    before = set(workers())
    with log.open("w") as said:
        driver = subprocess.Popen(
            [*words, "--", *launched.words(workdir)],
            stdout=said,
            stderr=said,
            # Ray starts its workers with niceness 15, which on a busy machine is not at all.
            env={**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"},
        )
    try:
        launched.until(lambda: launched.saved(workdir) > 0, "a checkpoint", 600, log)
        first, second = sorted(set(workers()) - before)
        os.kill(second, signal.SIGKILL)
        assert driver.wait(timeout=900) == 0, log.read_text()
    finally:
        driver.kill()
    text = log.read_text()
    assert "resuming from step" in text, text
    tiny.assert_same_state(workdir, reference, launched.STEPS)


@pytest.fixture
def cluster(ray, monkeypatch):
    """Two nodes with one processor each; in truth two Rays on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


def test_a_node_that_is_lost(cluster, reference, tmp_path):
    node = cluster.add_node(num_cpus=1)
    workdir = tmp_path / "elastic" / "run"
    words = [sys.executable, str(launched.SUBMIT), "ray", "--workers=2", "--cpus-per-worker=1"]
    words += ["--min-workers=1"]
    words += [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
    log = tmp_path / "ray.log"
    with log.open("w") as said:
        driver = subprocess.Popen(
            [*words, "--", *launched.words(workdir), "--config.resume.devices=4"],
            stdout=said,
            stderr=said,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
        )
    try:
        launched.until(lambda: launched.saved(workdir) > 0, "a checkpoint", 600, log)
        cluster.remove_node(node, allow_graceful=False)
        assert driver.wait(timeout=900) == 0, log.read_text()
    finally:
        driver.kill()
    text = log.read_text()
    assert "2 of 4 devices: the same global batch, in more microbatches" in text, text
    found = tiny.losses(workdir)
    expected = tiny.losses(reference)
    assert sorted(found) == sorted(expected)
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], rtol=1e-3)


def test_a_wrong_config_is_not_tried_again(ray, tmp_path):
    done = launched.submit(
        "ray",
        "--workers=2",
        "--cpus-per-worker=1",
        *(f"--env={name}={value}" for name, value in ENVIRONMENT.items()),
        after=launched.words(tmp_path / "run", steps=-1),
        env={**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 2, done
    assert "config error" in done.stdout + done.stderr
