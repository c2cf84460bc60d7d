"""Where a run on a CPU gets the memory of its steps from.

XLA's CPU client takes the temporaries of a step, which are gigabytes, from the C library's `malloc`
and gives them back after the step. glibc returns so large a block to the system at once, which then
has to make and clear every page of it again for the next step. With the settings here all blocks
come from one heap that only grows, so that pages are made once; the process keeps its peak of
memory until it ends.
"""

from __future__ import annotations

import ctypes
import os
import pathlib

# Names in GLIBC_TUNABLES, parameters of mallopt(3) and values: no block of its own for what is
# large, nothing returned from the end of the heap, and one heap for all threads.
_SETTINGS = (
    ("glibc.malloc.mmap_max", -4, 0),
    ("glibc.malloc.trim_threshold", -1, -1),
    ("glibc.malloc.arena_max", -8, 1),
)
# Device files of NVIDIA's and AMD's GPUs and of TPUs.
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")


def keep_freed_memory() -> bool:
    """Has `malloc` keep what is freed, for the rest of this process; returns whether it does.

    It does nothing where steps run on an accelerator, and where the C library is not glibc; a
    setting that `GLIBC_TUNABLES` names is left as it is. It must be called before JAX has made its
    threads. Threads that are older may have heaps of their own, of 64 MiB, in which blocks are
    still returned: `GLIBC_TUNABLES=glibc.malloc.arena_max=1` (as launch/local.sh has it) also rules
    these out.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not _on_cpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = [(parameter, value) for name, parameter, value in _SETTINGS if name not in tunables]
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)


def _on_cpu() -> bool:
    """Whether JAX will run on the CPU, as far as can be told before it is asked."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    devices = pathlib.Path("/dev")
    return not any(next(devices.glob(name), None) for name in _ACCELERATORS)
