"""Several processes: start-up, and stopping together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its barrier is the only one with a time-out
from jax.experimental import multihost_utils

from jaxvl.config import ConfigError, check

# Options of a command that may run as several processes; all three or none.
OPTIONS = {"coordinator": None, "processes": None, "process": None}


def initialise(options: Mapping[str, str]) -> None:
    """Joins the other processes, if there are any: as `options` say, or as the cluster's environment says.

    Raises:
      ConfigError: only some of the options, or values that are not numbers.
    """
    given = {k: options[k] for k in OPTIONS if k in options}
    if not given:
        announced = ["JAX_COORDINATOR_ADDRESS", "SLURM_JOB_NUM_NODES"]
        if not os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
            announced.append("CLOUD_TPU_TASK_ID")  # libtpu sets it for its children, even where it only compiles
        if any(os.environ.get(k) for k in announced):
            jax.distributed.initialize()
        return
    for name in OPTIONS:
        check(name in given, f"--{name}", "is needed too: --coordinator, --processes and --process go together")
    try:
        count, index = int(given["processes"]), int(given["process"])
    except ValueError:
        raise ConfigError("--processes", f"{given['processes']!r} and --process {given['process']!r} must be integers") from None
    check(0 <= index < count, "--process", f"{index} must be in 0 … {count - 1}")
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(given["coordinator"], count, index)


def from_process_0(make: Callable[[], Any]) -> Any:
    """What `make()` returns in process 0, in every process; it must be JSON-able.

    So processes agree on what a shared folder holds, whenever each of them would have looked.
    """
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def meet(what: str, seconds: float = 60) -> None:
    """Waits until every process has come here.

    Raises:
      TimeoutError: some process did not come within `seconds`.
    """
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    try:
        client.wait_at_barrier(f"jaxvl: {what}", int(seconds * 1000))
    except Exception as error:  # jaxlib raises its own type
        raise TimeoutError(f"{what}: only some processes got there ({error})") from None


class StopSignal:
    """Context manager in which SIGTERM and SIGINT ask for a stop after the current step instead of ending the process.

    A second signal ends the process as it would have without this.
    """

    def __init__(self):
        self.name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        try:
            self._old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever runs us there handles signals
            self._old = {}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.name = signal.Signals(number).name

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process."""
        if jax.process_count() == 1:
            return self.name is not None
        if step % 10:  # one small message between the processes every ten steps
            return False
        asked = multihost_utils.process_allgather(jax.numpy.int32(self.name is not None))
        if asked.any() and self.name is None:
            self.name = "a signal to another process"
        return bool(asked.any())
