"""Whom a process joins: as its options say, as SLURM announces, nobody."""

import pytest

from jaxvl.config import ConfigError
from jaxvl.sharding import hosts

STEP = {
    "SLURM_JOB_ID": "10",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}
PORT = 65535 - 2**12 + 1 + 10  # as JAX takes it from the job's number


@pytest.fixture
def joined(monkeypatch):
    """What `initialise` joins with; the environment has nothing to say of others."""
    for name in (*STEP, "SLURM_JOB_NUM_NODES", "JAX_COORDINATOR_ADDRESS", "CLOUD_TPU_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    found = []
    monkeypatch.setattr(hosts, "_join", lambda *args: found.append(args))
    return found


def announce(monkeypatch, **changes):
    for name, value in {**STEP, **changes}.items():
        monkeypatch.setenv(name, value)


def test_one_process_joins_nobody(joined):
    hosts.initialise({})
    assert joined == []


def test_options(joined):
    hosts.initialise({"coordinator": "h:1", "processes": "4", "process": "3", "workdir": "x"})
    assert joined == [("h:1", 4, 3, None)]


@pytest.mark.parametrize("options", [{}, {"coordinator": "auto"}])
def test_a_task_of_a_step_of_slurm(joined, monkeypatch, options):
    announce(monkeypatch)
    hosts.initialise(options)
    assert joined == [(f"node07:{PORT}", 4, 3, [1])]


def test_one_task_for_all_devices_of_a_node(joined, monkeypatch):
    announce(monkeypatch, JAX_LOCAL_DEVICE_IDS="0,1,2,3")
    hosts.initialise({})
    assert joined == [(f"node07:{PORT}", 4, 3, [0, 1, 2, 3])]


def test_the_only_task_of_a_step_has_all_devices(joined, monkeypatch):
    announce(monkeypatch, SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
    hosts.initialise({})
    assert joined == []


def test_a_batch_script_of_slurm_is_one_process(joined, monkeypatch):
    announce(monkeypatch, SLURM_JOB_NUM_NODES="2")
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    hosts.initialise({})
    assert joined == []


def test_whoever_was_joined_already_is_left_alone(joined, monkeypatch):
    announce(monkeypatch)
    monkeypatch.setattr(hosts.jax.distributed, "is_initialized", lambda: True)
    hosts.initialise({})
    assert joined == []


@pytest.mark.parametrize(
    "options, said",
    [
        ({"processes": "2"}, "--coordinator: is needed too"),
        ({"coordinator": "auto", "processes": "2"}, "--process: is needed too"),
        ({"coordinator": "auto"}, "--coordinator: the environment does not tell of other"),
        (
            {"coordinator": "h:1", "processes": "two", "process": "0"},
            "--processes: 'two' and --process '0' must be integers",
        ),
        ({"coordinator": "h:1", "processes": "2", "process": "2"}, "--process: 2 must be in 0 … 1"),
        (
            {"coordinator": "h", "processes": "2", "process": "1"},
            "--coordinator: 'h' must be HOST:PORT of process 0, or 'auto'",
        ),
    ],
)
def test_options_that_cannot_be_followed(joined, options, said):
    with pytest.raises(ConfigError) as told:
        hosts.initialise(options)
    assert str(told.value).startswith(said) and joined == []
