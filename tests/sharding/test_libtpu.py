"""libtpu's compiler gets stacks on which it does not overflow."""

import os
import subprocess
import sys

import processes
import pytest

from jaxvl.sharding.libtpu import STACK, STACK_BYTES, deepen_stacks

# KiB of the stacks of the compiler's threads, after it has compiled something.
PROGRAM = """
import os
import jax
from jax.sharding import SingleDeviceSharding
from jaxvl.sharding.topology import compile_only_devices

where = SingleDeviceSharding(compile_only_devices("v5e:2x2")[0])
x = jax.ShapeDtypeStruct((256, 256), "float32", sharding=where)
jax.jit(lambda x: x @ x).lower(x).compile()
ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
ranges = [(int(low, 16), int(high, 16)) for low, high in ranges]
for thread in os.listdir("/proc/self/task"):
    try:
        name = open(f"/proc/self/task/{thread}/comm").read()
        words = open(f"/proc/self/task/{thread}/syscall").read().split()
    except OSError:  # it has ended
        continue
    if name.startswith("futex-default") and len(words) > 2:
        pointer = int(words[-2], 16)
        print(*((high - low) // 1024 for low, high in ranges if low <= pointer < high))
"""


def stacks():
    """Of the compiler's threads, KiB."""
    env = {**os.environ, "PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return sorted(int(size) for size in done.stdout.split())


@pytest.mark.usefixtures("tpu_compiler")
def test_threads_of_the_compiler_have_deep_stacks(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    found = stacks()
    assert found and found[0] >= STACK_BYTES // 1024


def test_flags_of_the_user_stay(monkeypatch):
    for before, after in (
        ("", f"--{STACK}={STACK_BYTES}"),
        ("--xla_a=1", f"--xla_a=1 --{STACK}={STACK_BYTES}"),
        (f"--{STACK}=5 --xla_a=1", f"--{STACK}=5 --xla_a=1"),
    ):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", before)
        deepen_stacks()
        deepen_stacks()
        assert os.environ["LIBTPU_INIT_ARGS"] == after
