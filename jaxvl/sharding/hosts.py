"""Several processes: start-up, what they tell each other, and ending together.

What may end a run of several processes, and how the others hear of it:

    a signal, a feed that fails, too many bad records    all confer at the next step, save the same state and end (`training/agreement.py`)
    SIGTERM while nothing can be lost                    it ends at once; the others end when its heartbeats are missed (`StopSignal.at_once`)
    a process does not come at the start                 all end after `START_SECONDS`, naming it (`roll_call`)
    an exception in one process                          it ends at once; the others end when its heartbeats are missed (`run_together`)
    a process is killed, a machine is lost               the others end when its heartbeats are missed; JAX's message names the task

A step that the lost one had a part in may fail in the others before its heartbeats are missed; they
wait to hear whose they were.

JAX waits 100 s for a heartbeat and 300 s for the others at the end, in which a run is paid for and
does nothing; here it is `PATIENCE`. For those that do not come at the start it waits
`START_SECONDS`, which the environment's JAXVL_START_SECONDS replaces.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import (
    clusters,  # who tells the coordinator's address before it is gone to
    distributed,  # its barrier is the only one with a time-out
)
from jax.experimental import multihost_utils

from jaxvl.config import ConfigError, check
from jaxvl.sharding.roll_call import NotAllHere as NotAllHere
from jaxvl.sharding.roll_call import roll_call

# seconds without a heartbeat after which a process counts as lost; the same at the end of a run
PATIENCE = 20
START_SECONDS = 300.0  # for all processes to come
LONGEST = 2000  # bytes of a text that a process tells the others
# Exit status of a command that a signal has ended with everything saved: the same command goes on.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
AUTO = "auto"
# Options of a command that may run as several processes: all three, or `--coordinator=auto`, or
# none.
OPTIONS = {"coordinator": None, "processes": None, "process": None}


def initialise(options: Mapping[str, str]) -> None:
    """Joins the other processes, if there are any: as `options` say, or as the cluster's
    environment says where it announces several by itself or `--coordinator=auto` asks for it.
    Where whoever started this process has joined them already (Ray does), nothing is done.

    Raises:
      ConfigError: only some of the options, or values that are not numbers.
      NotAllHere: some processes have not come.
    """
    given = {k: options[k] for k in OPTIONS if k in options}
    if not given and (jax.distributed.is_initialized() or not _announced()):
        return
    if not given or given == {"coordinator": AUTO}:
        _join(*_detect())
    else:
        _join(*_read(given))


def _announced() -> bool:
    """Whether the environment says by itself that this is one of several processes."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return True
    # Within `srun`; a batch script has other variables of SLURM's too.
    if os.environ.get("SLURM_STEP_NODELIST") and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return True
    # libtpu sets it for its children, even where it only compiles
    on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    return bool(os.environ.get("CLOUD_TPU_TASK_ID")) and not on_cpu


def _read(given: Mapping[str, str]) -> tuple[str, int, int, list[int] | None]:
    """Address, number of processes, own number and (None: all) devices, from options."""
    for name in OPTIONS:
        check(
            name in given,
            f"--{name}",
            "is needed too: --coordinator, --processes and --process go together "
            "(or --coordinator=auto alone)",
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
    address = given["coordinator"]
    check(
        address.rpartition(":")[2].isdecimal(),
        "--coordinator",
        f"{address!r} must be HOST:PORT of process 0, or {AUTO!r}",
    )
    return address, count, index, None


def _detect() -> tuple[str, int, int, list[int] | None]:
    """The same as the cluster says it: SLURM, TPU, Kubernetes, MPI, as far as JAX knows them."""
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    address, count, index, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        None,
        None,
        [int(i) for i in devices.split(",")] if devices else None,
        None,
        int(START_SECONDS),
    )
    check(
        None not in (address, count, index),
        "--coordinator",
        "the environment does not tell of other processes: JAX finds neither SLURM, a TPU pod, "
        "Kubernetes nor MPI; give --coordinator=HOST:PORT --processes=N --process=I",
    )
    return address, count, index, None if local is None else list(local)


def _join(address: str, count: int, index: int, devices: list[int] | None) -> None:
    """Waits for all to come, and connects them."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    seconds = float(os.environ.get("JAXVL_START_SECONDS", START_SECONDS))
    HOST_NAMES[:] = roll_call(address, count, index, seconds, say)
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own would catch SIGTERM, which is to end a process that has not begun.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        count,
        index,
        devices,
        heartbeat_timeout_seconds=PATIENCE,
        shutdown_timeout_seconds=PATIENCE,
    )


HOST_NAMES: list[str] = []  # of all processes, once they have come


def name_of(process: int) -> str:
    """A process for a message: `process 1 of 4 (host7)`."""
    host = f" ({HOST_NAMES[process]})" if HOST_NAMES else ""
    return f"process {process} of {jax.process_count()}{host}"


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

    Python runs its handlers between two of its own instructions, which a compilation of minutes or
    a wait for the devices keeps away. So a thread hears of SIGTERM besides, and ends the process
    where nothing is lost by it (`at_once`).

    Attributes:
      name: of the first signal; None: there was none.
      obeyed: whether something was left undone because of it; the same in all processes.
    """

    def __init__(self):
        self.name: str | None = None
        self.obeyed = False
        self._old: dict[int, Any] = {}
        self._now: str | None = None
        self._heard = False  # of SIGTERM
        self._wakeup: _Wakeup | None = None

    def __enter__(self) -> StopSignal:
        try:
            self._old = {
                s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)
            }
            self._wakeup = _Wakeup(self._hear)
        except ValueError:  # not the main thread: whoever runs us there handles signals
            self._old = {}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None

    @contextlib.contextmanager
    def at_once(self, when: str) -> Iterator[None]:
        """Within, nothing is lost where the process ends: SIGTERM ends it at once, with status
        `STOPPED`, even while it compiles; so does one that has come before and was not obeyed yet.

        Args:
          when: for the message: "before the first step".
        """
        self._now = when
        if self._heard:
            self._leave(when)
        try:
            yield
        finally:
            self._now = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.name = signal.Signals(number).name

    def _hear(self, number: int) -> None:
        """In a thread of its own, as soon as the signal has come."""
        if number != signal.SIGTERM:
            return
        self._heard = True
        when = self._now
        if when is not None:
            self._leave(when)

    def _leave(self, when: str) -> NoReturn:
        print(f"stopped by SIGTERM {when}; nothing is lost", file=sys.stderr, flush=True)
        os._exit(STOPPED)


class _Wakeup:
    """A thread that is told the number of each signal for which Python has a handler, at once.

    Only the main thread can make one (ValueError). What was told before is told again after
    `close`.
    """

    def __init__(self, tell: Callable[[int], None]):
        self._ours, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        try:
            self._old = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        except ValueError:
            self._ours.close()
            self._signals.close()
            raise
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name="jaxvl-signals", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while numbers := self._ours.recv(16):
            for number in numbers:
                self._tell(number)

    def close(self) -> None:
        signal.set_wakeup_fd(self._old)
        self._signals.close()  # the thread reads the end
        self._thread.join()
        self._ours.close()


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

    The processes of a command that went well, or was stopped, wait for each other, however long one
    of them writes its report. One that is ended by an exception does not wait for the others, which
    would wait for it: it ends at once, and they hear of it.
    """
    try:
        status = main(argv)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _abandon(error)
    if status in (0, STOPPED) and jax.distributed.is_initialized():
        multihost_utils.sync_global_devices("the command is done")
    return status


def _abandon(error: Exception) -> NoReturn:
    """Ends this process without a word to the others."""
    me = name_of(jax.process_index())
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
