"""Several processes on this machine, started anew when one fails.

Each process has its share of the devices: `--gpus-per-process` of the GPUs, or
`--cpu-devices` simulated ones. What they say has their number before it.

A run that ends with an error, or a process of it that is killed, is started again after a pause of
1, 2, 4 … 60 seconds, `--restarts` times at most; it goes on from its newest checkpoint. It is not
started again where that would change nothing: done (status 0), a wrong config (2), a failed
evaluator (3). Where one process dies the others have `--patience` seconds to end by themselves,
saying whom they miss; then they are killed. SIGTERM and Ctrl-C are handed on to the processes, which
save and end with status 75; a second one kills them.

With `--elastic=LEAST` a run that fails is started again without the devices of the process that
died first, in the next smaller number of processes that divides `--processes`, down to LEAST: for a
device that is gone for good. The global batch stays what it is (`resume.devices` of the config).
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from targets._base import (
    DEVICES,
    DONE,
    FINAL,
    STOPPED,
    TOGETHER,
    WRONG,
    Options,
    Parser,
    Run,
    UsageError,
    add_environment,
    count,
    number,
)

LONGEST_PAUSE = 60.0  # seconds
PR_SET_PDEATHSIG = 1  # of prctl(2)
LIBRARY = ctypes.CDLL(None)  # opened before a fork, after which little is safe


def add_options(parser: Parser) -> None:
    parser.add_argument("--processes", type=count, default=1, help="(default: 1)")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--cpu-devices", type=count, help="simulated CPU devices of all processes together"
    )
    devices.add_argument(
        "--gpus-per-process", type=count, help="process I has GPUs I*N … I*N+N-1 (default: all)"
    )
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    parser.add_argument(
        "--elastic", type=count, metavar="LEAST", help="processes to go on with (default: all)"
    )
    parser.add_argument(
        "--patience",
        type=number,
        default=60,
        help="seconds for the others to end when one has died (default: 60)",
    )
    add_environment(parser)


def render(options: Options, run: Run) -> str:
    lines = []
    for one in processes(options, run, "127.0.0.1:PORT", range(options.processes)):
        settings = [f"{name}={shlex.quote(value)}" for name, value in one.environment.items()]
        lines.append(" ".join([*settings, shlex.join(one.command)]))
    return "\n".join(lines) + "\n"


def submit(options: Options, run: Run) -> int:
    supervisor = Supervisor(options, run)
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, supervisor.hand_on)
    return supervisor.run_until_done()


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
      environment: what it has besides that of the launcher.
    """

    command: list[str]
    environment: dict[str, str]


def processes(options: Options, run: Run, address: str, places: Sequence[int]) -> list[Process]:
    """The processes of a run.

    Args:
      address: of process 0.
      places: of each, which say whose devices it has; fewer than `--processes` where some are gone.
    """
    number = len(places)
    command_of_all = [*run.command, *_elastic(options, run)]
    if TOGETHER in run.words and number > 1:
        raise UsageError(f"local: argument --processes: must be 1 with {TOGETHER} after --")
    made = []
    for i, place in enumerate(places):
        environment = {"PYTHONPATH": run.root, "PYTHONUNBUFFERED": "1", **dict(options.env)}
        if options.cpu_devices is not None:
            environment |= _cpu(options.cpu_devices // options.processes)
        if options.gpus_per_process is not None:
            first = place * options.gpus_per_process
            own = range(first, first + options.gpus_per_process)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        command = list(command_of_all)
        if number > 1:
            command += [f"--coordinator={address}", f"--processes={number}", f"--process={i}"]
        made.append(Process(command, environment))
    return made


def _elastic(options: Options, run: Run) -> list[str]:
    """What tells the run how many devices its config is for."""
    if options.cpu_devices is not None and options.cpu_devices % options.processes:
        raise UsageError(
            f"local: argument --cpu-devices: {options.cpu_devices} must be a multiple of "
            f"--processes={options.processes}"
        )
    if options.elastic is None:
        return []
    fewer = [n for n in range(1, options.processes) if options.processes % n == 0]
    if not fewer:
        raise UsageError("local: argument --elastic: needs --processes of 2 at least")
    if options.elastic > fewer[-1]:
        raise UsageError(
            f"local: argument --elastic: {options.elastic} must be at most {fewer[-1]}, the next "
            f"smaller number of processes that divides --processes={options.processes}"
        )
    if run.value(DEVICES) is not None:
        return []
    if options.cpu_devices is None and options.gpus_per_process is None:
        raise UsageError(
            f"local: argument --elastic: needs --gpus-per-process, --cpu-devices or {DEVICES}=NUMBER "
            "after --"
        )
    devices = options.cpu_devices or options.gpus_per_process * options.processes
    return [f"{DEVICES}={devices}"]


def left_over(places: Sequence[int], lost: Sequence[int], of: int, least: int) -> list[int]:
    """The places that a run goes on with when some are lost: as many as divide `of`; all, where
    fewer than `least` would be left."""
    alive = [place for place in places if place not in lost]
    number = max((n for n in range(least, len(alive) + 1) if of % n == 0), default=None)
    return list(places) if number is None else alive[:number]


def _cpu(devices: int) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "")  # the last one of a name counts
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {flag}".strip()}


class Supervisor:
    """Runs the processes until the run is done or has failed too often."""

    def __init__(self, options: Options, run: Run):
        self._options = options
        self._run = run
        self._running: list[subprocess.Popen] = []
        self._asked = 0  # signals to this process
        self._places = list(range(options.processes))  # that are left
        self._lost: list[int] = []  # places whose processes failed first

    def hand_on(self, number: int, frame: object = None) -> None:
        """Hands a signal on to the processes: asks them to save and end, then kills them."""
        self._asked += 1
        for process in self._running:
            _send(process, signal.SIGTERM if self._asked == 1 else signal.SIGKILL)

    def run_until_done(self) -> int:
        """The exit status of the run."""
        failures = 0
        while True:
            statuses = self._once()
            status = verdict(statuses)
            if self._asked or status in FINAL:
                return status
            if status != STOPPED:
                failures += 1
                if failures > self._options.restarts:
                    _say(f"gives up after {self._options.restarts} restarts")
                    return status
                if self._options.elastic is not None:
                    self._shrink(self._options.elastic)
                self._pause(min(2.0 ** (failures - 1), LONGEST_PAUSE))
            if self._asked:
                return status
            _say(f"starts it again (restart {failures} of {self._options.restarts})")

    def _shrink(self, least: int) -> None:
        """What goes on when a process is gone for good."""
        whole = self._options.processes
        left = left_over(self._places, self._lost, whole, least)
        if left != self._places:
            _say(f"goes on with {len(left)} of {whole} processes")
        self._places = left

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._asked:
            time.sleep(0.1)

    def _once(self) -> list[int]:
        """Runs all processes to their end; exit statuses, negative: the signal that ended one."""
        piped = self._options.processes > 1
        listening = []
        address = _free_address()
        self._lost = []
        for i, one in enumerate(processes(self._options, self._run, address, self._places)):
            process = _start(one, piped)
            self._running.append(process)
            if self._asked:
                _send(process, signal.SIGTERM)
            if piped:
                listening += [
                    _repeat(process.stdout, sys.stdout, i),
                    _repeat(process.stderr, sys.stderr, i),
                ]
        try:
            self._wait()
        finally:
            for process in self._running:
                _send(process, signal.SIGKILL)
                process.wait()
        for thread in listening:
            thread.join(timeout=5)
        statuses = [process.returncode for process in self._running]
        self._running = []
        return statuses

    def _wait(self) -> None:
        """Until all processes have ended, or the time is up that they have once one has failed."""
        end = None
        while True:
            statuses = [process.poll() for process in self._running]
            failed = [i for i, status in enumerate(statuses) if status not in (None, DONE)]
            if failed and end is None:
                end = time.monotonic() + self._options.patience
                self._lost = [self._places[i] for i in failed]
                for i in failed:
                    _say(f"process {i} of {len(statuses)} {describe(statuses[i])}")
            if None not in statuses or (end is not None and time.monotonic() > end):
                return
            time.sleep(0.05)


def verdict(statuses: Sequence[int]) -> int:
    """What the processes' exit statuses say of the run: an option that is wrong, a stop that one of
    them was asked for, else the first that failed."""
    if all(status == DONE for status in statuses):
        return DONE
    for known in (WRONG, STOPPED):
        if known in statuses:
            return known
    failed = next(status for status in statuses if status != DONE)
    return failed if failed > 0 else 128 - failed  # as a shell has it


def describe(status: int) -> str:
    """How a process has ended."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    if status == STOPPED:
        return "was stopped and has saved"
    return f"has ended with status {status}"


def _start(one: Process, piped: bool) -> subprocess.Popen:
    pipe = subprocess.PIPE if piped else None
    return subprocess.Popen(
        one.command,
        env={**os.environ, **one.environment},
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,  # Ctrl-C comes to this process only, which hands it on
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Has the system send SIGTERM to this process when the launcher dies (Linux)."""
    if sys.platform == "linux":
        LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _send(process: subprocess.Popen, number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _repeat(source: IO[bytes], sink: IO[str], number: int) -> threading.Thread:
    """Repeats what a process says, with its number before each line."""

    def repeat() -> None:
        for line in source:
            sink.write(f"[{number}] {line.decode(errors='replace')}")
            sink.flush()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    return thread


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
