"""Starts a command of jaxvl as one or several processes of this machine, and plays what may befall
one of them.

As a script, `processes.py FAULT ARGUMENTS…`: `jaxvl.train` with these arguments, whose last process
a fault befalls. `data`: its feed raises. `exception`: its loop raises. `kill`: it kills itself.
`preempted`: it gets SIGTERM. `evaluator`: an evaluator raises. `slow reads`: each of its records
takes a while to read. `slow disk`: its part of a checkpoint takes seconds to write. `late`: it never
comes. `slow device`: it gets a tenth of its processor's time.

Others befall all of them, as a preemption does. `compiling`, `evaluating`, `saving`: they get SIGTERM
while they compile their step, evaluate, or write a checkpoint.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
DEVICES = 8
GOOD = 4  # steps before the fault
SLOW_READ = 0.6  # seconds of a record
SLOW_WRITE = 5.0  # seconds of a checkpoint
PREEMPTED = ("compiling", "evaluating", "saving")
# Stops a process for nine tenths of the time, as cpulimit does.
THROTTLE = """
import os, signal, sys, time
end = time.monotonic() + 600
try:
    while time.monotonic() < end:
        for number, seconds in ((signal.SIGSTOP, 0.027), (signal.SIGCONT, 0.003)):
            os.kill(int(sys.argv[1]), number)
            time.sleep(seconds)
except ProcessLookupError:
    pass
"""


def start(
    argv: Sequence[str], processes: int = 1, devices: int = DEVICES, **options: Any
) -> list[subprocess.Popen]:
    """`python ARGV…` as so many processes that share `devices`. `options`: of `Popen`; by default
    what they say on stderr is piped."""
    # the last one counts
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices // processes}"
    )
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    options = {
        **dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env),
        **options,
    }
    if processes == 1:
        return [subprocess.Popen([sys.executable, *argv], **options)]
    together = [f"--coordinator={_free_address()}", f"--processes={processes}"]
    return [
        subprocess.Popen([sys.executable, *argv, *together, f"--process={i}"], **options)
        for i in range(processes)
    ]


def train(config: pathlib.Path, workdir: Any) -> list[str]:
    """Arguments of Python that train."""
    return ["-m", "jaxvl.train", f"--config={config}", f"--workdir={workdir}"]


def finish(running: Sequence[subprocess.Popen], seconds: float = 300) -> list[tuple[str, str]]:
    """What each process has said on stdout and stderr; all of them must end well."""
    try:
        said = [process.communicate(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _count(arguments: Sequence[str]) -> int:
    """Processes, as the arguments say."""
    given = [w.partition("=")[2] for w in arguments if w.startswith("--processes=")]
    return int(given[0]) if given else 1


def _befall(fault: str) -> None:
    """Has `fault` come over this process."""
    from jaxvl.data import feed
    from jaxvl.data.batches import Batches
    from jaxvl.data.records import DataError
    from jaxvl.evals.zero_shot import ZeroShot

    begin = Batches.begin
    take = feed.Feed.take
    taken = []

    class Gone:
        """A batch whose records cannot be read."""

        def result(self) -> None:
            raise DataError("the disk is gone")

    def say() -> None:
        print("FAULT", flush=True, file=sys.stderr)

    def begun(self, i):
        return Gone() if fault == "data" and i == GOOD else begin(self, i)

    def after(self, **options):
        if len(taken) == GOOD and fault != "evaluator":
            say()
            if fault == "exception":
                raise ZeroDivisionError("a bug in the loop")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "slow device":
                subprocess.Popen([sys.executable, "-c", THROTTLE, str(os.getpid())])
            if fault == "preempted":
                os.kill(os.getpid(), signal.SIGTERM)
        taken.append(1)
        return take(self, **options)

    def evaluate(self, encoders):
        say()
        raise ZeroDivisionError("a bug in an evaluator")

    if fault == "slow reads":
        _slow_reads()
    if fault == "slow disk":
        _slow_disk()
    if fault == "compiling":
        _preempted_while_it_compiles(say)
    if fault == "evaluating":
        _preempted_while_it_evaluates(say)
    if fault == "saving":
        _slow_disk(_once(lambda: _preempt(say, 0.0)))
    Batches.begin = begun
    feed.Feed.take = after
    if fault == "evaluator":
        ZeroShot.run = evaluate


def _slow_reads() -> None:
    from jaxvl.data.reading.fill import Filler

    load = Filler._load

    def slow(self, number, spent):
        time.sleep(SLOW_READ)
        spent["read"] += SLOW_READ
        return load(self, number, spent)

    Filler._load = slow


def _slow_disk(begun: Callable[[], None] = lambda: None) -> None:
    """What this process writes is on the disk seconds later. `begun`: called when it begins to."""
    import orbax.checkpoint as ocp

    save = ocp.PyTreeCheckpointHandler.async_save

    class Slow:
        """A write, as Orbax waits for it."""

        def __init__(self):
            self._until = time.monotonic() + SLOW_WRITE

        def result(self, timeout=None):
            del timeout
            time.sleep(max(self._until - time.monotonic(), 0.0))

    async def slow(self, *args, **options):
        begun()
        return [*(await save(self, *args, **options)), Slow()]

    ocp.PyTreeCheckpointHandler.async_save = slow


def _preempted_while_it_compiles(say: Callable[[], None]) -> None:
    """Meanwhile no handler of Python runs."""
    import jax

    compiled = jax.stages.Lowered.compile

    def compiling(self, *args, **options):
        _preempt(say)
        return compiled(self, *args, **options)

    jax.stages.Lowered.compile = compiling


def _preempted_while_it_evaluates(say: Callable[[], None]) -> None:
    from jaxvl.evals.zero_shot import ZeroShot

    def evaluate(self, encoders):
        _preempt(say)
        time.sleep(600)

    ZeroShot.run = evaluate


def _preempt(say: Callable[[], None], seconds: float = 0.3) -> None:
    """SIGTERM, in a moment."""
    say()
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _once(act: Callable[[], None]) -> Callable[[], None]:
    """`act`, but the first time only."""
    done = []

    def acting() -> None:
        if not done:
            done.append(1)
            act()

    return acting


def _main(argv: Sequence[str]) -> int:
    from jaxvl import train
    from jaxvl.sharding import hosts
    from jaxvl.training import agreement, stragglers

    fault, *arguments = argv
    stragglers.WINDOW = 5.0
    agreement.INTERVAL = 1.0
    count = _count(arguments)
    last = count == 1 or f"--process={count - 1}" in arguments
    if last and fault == "late":
        time.sleep(600)
    if last or fault in PREEMPTED:
        _befall(fault)
    return hosts.run_together(train.main, arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
