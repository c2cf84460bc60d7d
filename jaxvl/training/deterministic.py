"""What makes the same program give the same bits each time it runs on the same devices.

Everything that jaxvl draws is a pure function of seed and step. CPUs and TPUs add in one order. On
GPUs, XLA may choose kernels by their measured speed, and some add by atomic operations; a flag
keeps it from both, which costs speed. XLA reads its flags once, when it is first used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
from jax._src import xla_bridge  # nothing public tells whether XLA is in use

from jaxvl.config import check

FLAGS = ("--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops")
_ON = ("", "true", "1")


def make_deterministic() -> None:
    """Sets the flags of XLA in this process.

    Raises:
      ConfigError: a flag is set to something else; or it is too late, and a GPU is in use.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    for flag in FLAGS:
        values = _values(flag, given)
        problem = f"XLA_FLAGS has {flag}={values[-1] if values else ''}; must be true, or left out"
        check(not values or values[-1] in _ON, "deterministic", problem)
    missing = [flag for flag in FLAGS if not _values(flag, given)]
    if not missing:
        return
    if xla_bridge.backends_are_initialized():
        late = jax.default_backend() == "gpu"
        needed = " ".join(f"{flag}=true" for flag in missing)
        problem = f"XLA is in use already; set XLA_FLAGS='{needed}' before the process starts"
        check(not late, "deterministic", problem)
        return
    os.environ["XLA_FLAGS"] = " ".join([*given, *(f"{flag}=true" for flag in missing)])


def _values(flag: str, given: Sequence[str]) -> list[str]:
    """What a flag is set to, each time it is."""
    parts = (word.partition("=") for word in given)
    return [value.lower() for name, _, value in parts if name == flag]
