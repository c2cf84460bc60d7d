"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd of their own, with their
files in a folder of the test's."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CPUS = 4

CONFIG = """\
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=60 OverTimeLimit=0
PartitionName=high Nodes={host} State=UP PriorityTier=10
"""


def missing() -> list[str]:
    """Programs of SLURM that are not on this machine."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Cluster:
    """Runs SLURM's own commands on it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: str, text: str = "", **options) -> str:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, env=self.environment, **options
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job, by name."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number)
        pairs = (part.split("=", 1) for part in shown.split() if "=" in part)
        return dict(pairs)

    def wait(self, number: str, states: Sequence[str], seconds: float) -> dict[str, str]:
        """The job once it is in one of the states."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.job(number)
            if job["JobState"] in states:
                return job
            time.sleep(0.5)
        raise AssertionError(f"job {number} is {job} after {seconds} s")

    def end_jobs(self) -> None:
        """Kills what a test has left running: the processes outlive the cluster otherwise."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            numbers = self.run("squeue", "--noheader", "--format=%i", timeout=20).split()
            for number in numbers:
                self.run("scancel", "--full", "--signal=KILL", number, timeout=20)
                self.run("scancel", number, timeout=20)
            end = time.monotonic() + 60
            while time.monotonic() < end and self.run("squeue", "--noheader", timeout=20):
                time.sleep(0.5)


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[Cluster]:
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname()
    ports = [_free_port(), _free_port()]
    text = CONFIG.format(
        host=host, controller_port=ports[0], node_port=ports[1], folder=folder, cpus=CPUS
    )
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    made = Cluster(folder)
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
    ]
    started = []
    try:
        for words in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
            log = open(folder / f"{words[0]}.out", "w")
            started.append(subprocess.Popen(words, stdout=log, stderr=log, env=made.environment))
            time.sleep(1.5)
        _wait_until_idle(made, host)
        yield made
    finally:
        made.end_jobs()
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_idle(made: Cluster, host: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", host],
            capture_output=True,
            text=True,
            env=made.environment,
        )
        if "State=IDLE" in done.stdout and "NOT_RESPONDING" not in done.stdout:
            return
        time.sleep(0.5)
    said = [path.read_text()[-2000:] for path in made.folder.glob("*.out")]
    raise AssertionError(f"the cluster did not start: {done.stdout} {said}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
