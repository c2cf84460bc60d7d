"""What libtpu, the runtime and compiler of TPUs, is told by the environment when it is loaded."""

from __future__ import annotations

import os

# The threads of the compiler have stacks of 64 KiB. Where products are fused into each other it
# estimates the cost of one within another's, and needs more: libtpu 0.0.42 ends with a SIGSEGV
# (STACK OVERFLOW, in `FusedSpatialMajorConvolution`) when it compiles BERT-large's step for a v4.
STACK = "fibers_default_thread_stack_size"
STACK_BYTES = 2**20


def deepen_stacks() -> None:
    """Gives the compiler's threads stacks of 1 MiB, unless `LIBTPU_INIT_ARGS` says how much. A
    libtpu that has been loaded does not look there again."""
    told = os.environ.get("LIBTPU_INIT_ARGS", "")
    if STACK not in told:
        os.environ["LIBTPU_INIT_ARGS"] = f"{told} --{STACK}={STACK_BYTES}".strip()
