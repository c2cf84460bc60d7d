"""A real SLURM on this machine: a job of two tasks is preempted, loses a task and reaches its time
limit, is requeued each time, and ends with the state of a run that nothing befell."""

import os
import signal

import launched
import pytest
import slurm_cluster
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CPU = ("--env=JAX_PLATFORMS=cpu", f"--env=XLA_FLAGS={launched.FLAGS}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = slurm_cluster.missing()
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster, workdir, *options, **changes):
    """Number of a job of two tasks, and its output file."""
    output = workdir.with_suffix(".log")
    done = launched.submit(
        "slurm",
        "--tasks-per-node=2",
        f"--output={output}",
        *CPU,
        *options,
        after=launched.words(workdir, **changes),
        env=cluster.environment,
        cwd=workdir.parent,
    )
    assert done.returncode == 0 and "Submitted batch job" in done.stdout, done
    return done.stdout.split()[-1], output


def requeued(cluster, job, restarts):
    """Waits until the job runs for the `restarts`-th time again, after 15 s instead of SLURM's two
    minutes; at once would be too early for the node, which has just revoked the job's credential."""

    def put_back():
        known = cluster.job(job)
        return known["Restarts"] == str(restarts) and known["JobState"] == "PENDING"

    launched.until(put_back, f"restart {restarts}")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+15")
    cluster.wait(job, ["RUNNING"], 240)


def test_a_job_is_requeued_until_it_is_done(cluster, tmp_path):
    reference = tmp_path / "reference" / "run"
    workdir = tmp_path / "slurm" / "run"
    words = launched.words(reference)
    done = launched.submit("local", "--processes=2", "--cpu-devices=4", after=words)
    assert done.returncode == 0, done.stderr
    job, output = submit(cluster, workdir, "--time=30", "--grace=60")

    def goes_on(restarts):
        """Waits until the run has made steps since it was started for the last time."""
        begun = "resuming from step"
        launched.until(
            lambda: output.exists() and output.read_text().count(begun) >= restarts,
            f"restart {restarts}",
            log=output,
        )
        before = launched.saved(workdir)
        launched.until(lambda: launched.saved(workdir) > before, "a checkpoint", log=output)

    # One that is more urgent takes the node.
    goes_on(0)
    urgent = cluster.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--exclusive",
        "--output=/dev/null",
        text="#!/bin/bash\nsleep 1\n",
    ).strip()
    cluster.wait(urgent, ["COMPLETED"], 180)
    requeued(cluster, job, 1)
    assert "stopped by SIGTERM after step" in " ".join(output.read_text().split())
    # A task is killed.
    goes_on(1)
    os.kill(launched.train_processes(workdir)[1], signal.SIGKILL)
    requeued(cluster, job, 2)
    assert "launch: ended with status 137; back into the queue" in output.read_text()
    # The time limit comes.
    goes_on(2)
    minutes = 2 + int(cluster.job(job)["RunTime"].split(":")[1])
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    launched.until(lambda: cluster.job(job)["Restarts"] == "3", "the time limit", log=output)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    requeued(cluster, job, 3)
    said = output.read_text()
    assert "launch: stopped with everything saved; back into the queue" in said, said

    assert cluster.wait(job, ["COMPLETED", "FAILED", "TIMEOUT"], 600)["JobState"] == "COMPLETED"
    tiny.assert_same_state(workdir, reference, launched.STEPS)


def test_a_wrong_config_is_not_tried_again(cluster, tmp_path):
    job, output = submit(cluster, tmp_path / "wrong", "--time=5", steps=-1)
    ended = cluster.wait(job, ["COMPLETED", "FAILED", "TIMEOUT"], 300)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "2:0", ended
    assert ended["Restarts"] == "0" and "config error" in output.read_text()
