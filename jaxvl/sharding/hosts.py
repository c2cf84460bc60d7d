"""Several processes: start-up, what they tell each other, and ending together.

What may end a run of several processes, and how the others hear of it:

    a signal, a feed that fails, too many bad records    all confer at the next step, save the same state and end (`training/agreement.py`)
    an exception in one process                          it ends at once; the others end when its heartbeats are missed (`run_together`)
    a process is killed, a machine is lost               the others end when its heartbeats are missed; JAX's message names the task

A step that the lost one had a part in may fail in the others before its heartbeats are missed; they
wait to hear whose they were.

JAX waits 100 s for a heartbeat and 300 s for the others at the end, in which a run is paid for and
does nothing; here it is `PATIENCE`.
"""

from __future__ import annotations

import collections
import enum
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its barrier is the only one with a time-out
from jax.experimental import multihost_utils

from jaxvl.config import ConfigError, check

# seconds without a heartbeat after which a process counts as lost; the same at the end of a run
PATIENCE = 20
LONGEST = 2000  # bytes of a text that a process tells the others
# Options of a command that may run as several processes; all three or none.
OPTIONS = {"coordinator": None, "processes": None, "process": None}


def initialise(options: Mapping[str, str]) -> None:
    """Joins the other processes, if there are any: as `options` say, or as the cluster's
    environment says.

    Raises:
      ConfigError: only some of the options, or values that are not numbers.
    """
    patience = {"heartbeat_timeout_seconds": PATIENCE, "shutdown_timeout_seconds": PATIENCE}
    given = {k: options[k] for k in OPTIONS if k in options}
    if not given:
        announced = ["JAX_COORDINATOR_ADDRESS", "SLURM_JOB_NUM_NODES"]
        if not os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
            announced.append(
                "CLOUD_TPU_TASK_ID"
            )  # libtpu sets it for its children, even where it only compiles
        if any(os.environ.get(k) for k in announced):
            jax.distributed.initialize(**patience)
        return
    for name in OPTIONS:
        check(
            name in given,
            f"--{name}",
            "is needed too: --coordinator, --processes and --process go together",
        )
    try:
        count = int(given["processes"])
        index = int(given["process"])
    except ValueError:
        raise ConfigError(
            "--processes",
            f"{given['processes']!r} and --process {given['process']!r} must be integers",
        ) from None
    check(0 <= index < count, "--process", f"{index} must be in 0 … {count - 1}")
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(given["coordinator"], count, index, **patience)


Made = TypeVar("Made")


def from_process_0(make: Callable[[], Made]) -> Made:
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


def meet(what: str, seconds: float = 20) -> None:
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
    """Context manager in which SIGTERM and SIGINT ask for a stop after the current step instead of
    ending the process.

    A second signal ends the process as it would have without this.
    """

    def __init__(self):
        self.name: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        try:
            self._old = {
                s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)
            }
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


class Signal(enum.IntEnum):
    """What a process says with the rows that it gives to a step. The largest of all rows is what
    the step was told."""

    FINE = 0
    CALL = 1  # all processes shall confer after this step
    BROKEN = 2  # these rows are not to be learnt from, and all shall confer


def gather(numbers: Sequence[int]) -> np.ndarray:
    """What every process says: int64 [processes, len(numbers)]. All processes call it at the same
    place, with as many numbers."""
    mine = np.asarray(numbers, np.int64)
    if jax.process_count() == 1:
        return mine[None]
    everyone = multihost_utils.process_allgather(
        mine.view(np.uint8)
    )  # jax makes 32 bits of an integer, unless it is told not to
    return np.ascontiguousarray(everyone, np.uint8).view(np.int64)


def gather_texts(text: str) -> list[str]:
    """What every process says, cut after `LONGEST` bytes."""
    return [said.decode(errors="ignore") for said in _gather_bytes(text.encode()[:LONGEST])]


def add_up(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Name -> name -> sum over all processes, which need not know the same inner names. All of them
    call it at the same place."""
    totals: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in counts}
    for said in _gather_bytes(json.dumps({name: dict(of) for name, of in counts.items()}).encode()):
        for name, of in json.loads(said).items():
            totals[name].update(of)
    return {name: dict(of) for name, of in totals.items()}


def _gather_bytes(mine: bytes) -> list[bytes]:
    """What every process says."""
    if jax.process_count() == 1:
        return [mine]
    lengths = gather([len(mine)])[:, 0].tolist()
    size = 1 << max(lengths).bit_length()  # few sizes, since each is compiled
    padded = np.frombuffer(mine.ljust(size, b"\0"), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [row.tobytes()[:length] for row, length in zip(everyone, lengths)]


def run_together(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a command that may be several processes; returns its exit status.

    The processes of a command that went well wait for each other, however long one of them writes
    its report. One that is ended by an exception does not wait for the others, which would wait for
    it: it ends at once, and they hear of it.
    """
    try:
        status = main(argv)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _abandon(error)
    if status == 0 and jax.distributed.is_initialized():
        multihost_utils.sync_global_devices("the command is done")
    return status


def _abandon(error: Exception) -> NoReturn:
    """Ends this process without a word to the others."""
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"{me}: a step has failed, perhaps because another process was lost; waiting to "
            f"hear of it",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(PATIENCE + 5)  # JAX ends this process, naming the one that was lost
    print(f"{me} ends with an error; the others follow", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
