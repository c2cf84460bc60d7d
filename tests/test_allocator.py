"""What a run on a CPU does with the memory of its steps."""

import os
import platform
import subprocess
import sys

import pytest

from jaxvl import allocator

# Minor page faults of five steps whose temporaries are blocks of 100 MB.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from jaxvl.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
step = jax.jit(lambda x: jnp.sort(jnp.sin(x)[::-1] * x)[:8])
x = jnp.arange(25_000_000, dtype=jnp.float32)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # a block that is cut for a small one is replaced once
    step(x).block_until_ready()
before = faults()
for _ in range(5):
    step(x).block_until_ready()
print(faults() - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")


def page_faults(how, **environment):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=env, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@glibc
def test_pages_of_a_step_are_made_once():
    env = {"GLIBC_TUNABLES": ""}
    left = page_faults("leave", **env)
    assert left > 40_000  # 4 KiB each
    assert page_faults("keep", **env) < left / 4


@pytest.mark.parametrize(
    "platforms, tunables, left",
    [
        ("cpu", "glibc.malloc.hugetlb=1", []),
        ("cpu", "glibc.malloc.arena_max=4:glibc.malloc.mmap_max=9", [-8, -4]),
        ("cuda,cpu", "", [-8, -4, -1]),
    ],
)
def test_what_the_environment_says_is_left(platforms, tunables, left, monkeypatch):
    set_here = []

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            set_here.append(parameter)
            return 1

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Library)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert allocator.keep_freed_memory() is (platforms == "cpu")
    assert sorted({-8, -4, -1} - set(set_here)) == left


def test_a_machine_with_an_accelerator_is_told_by_its_device_files(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(allocator.pathlib, "Path", lambda _: tmp_path)
    assert allocator._on_cpu()
    (tmp_path / "nvidiactl").touch()
    assert allocator._on_cpu()
    (tmp_path / "nvidia0").touch()
    assert not allocator._on_cpu()
