"""What the benchmarks share: timing side by side, and a result as table and JSON."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.training.describe import describe_machine


def in_turn(
    takers: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, warm: int = 0
) -> dict[str, list[float]]:
    """Seconds of `rounds` x `calls` calls per taker, the takers in turn, so that a busy moment hits
    all of them alike.

    One round before is not counted. A taker's result is waited for.

    Args:
      calls: counted calls in a row of one taker.
      warm: calls before those that are not counted: some machines take idle memory away within
        seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in takers}
    for i in range(rounds + 1):
        for name, take in takers.items():
            for call in range(-warm, calls):
                began = time.perf_counter()
                jax.block_until_ready(take())
                if i and call >= 0:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


@contextlib.contextmanager
def isolated(
    make: Callable[..., Callable[[], object]],
    *args: object,
    environment: Mapping[str, str | None] = {},
) -> Iterator[Callable[[], object]]:
    """A taker that lives in a process of its own, where `make(*args)` builds it: one library's
    threads and allocator cannot slow another's. Results come back pickled; an error in the process
    is raised here.

    Args:
      environment: variables that the process begins with beside this one's; None: without it.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, make, args), daemon=True
    )
    with _changed(environment):
        process.start()
    there.close()

    def take() -> object:
        here.send("take")
        try:
            ok, value = here.recv()
        except EOFError:
            raise RuntimeError(f"the process of {make.__name__} has died") from None
        if not ok:
            raise RuntimeError(f"{make.__name__}: {value}")
        return value

    try:
        yield take
    finally:
        here.close()
        process.join(timeout=10)
        process.kill()


@contextlib.contextmanager
def _changed(environment: Mapping[str, str | None]) -> Iterator[None]:
    """This process's own environment inside, which one that starts there inherits."""
    before = {name: os.environ.get(name) for name in environment}
    _set(environment)
    try:
        yield
    finally:
        _set(before)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _serve(
    connection: Any, make: Callable[..., Callable[[], object]], args: tuple[Any, ...]
) -> None:
    try:
        take = make(*args)
        while connection.recv():
            connection.send((True, take()))
    except EOFError:
        return
    except BaseException as error:
        connection.send((False, f"{type(error).__name__}: {error}"))
        raise


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """How many times as fast as `base` `name` is: median, lowest and highest of the pairs of a
    round."""
    pairs = [b / a for a, b in zip(seconds[name], seconds[base])]
    return statistics.median(pairs), min(pairs), max(pairs)


def processor_seconds(pids: Iterable[int]) -> float:
    """Processor time of some processes, all their threads, as Linux counts it: in steps of 10
    ms."""
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(
            fields[12]
        )  # utime and stime of proc_pid_stat(5), counted from the third field
    return ticks / os.sysconf("SC_CLK_TCK")


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Writes a file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def publish(
    console: Console, table: Table, result: dict[str, Json], path: pathlib.Path | None
) -> dict[str, Json]:
    """Prints the table and the machine; returns (and writes to `path`) `result` with the
    machine."""
    machine = describe_machine()
    result = {"machine": machine, **result}
    console.print(table)
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores; {machine['devices']}; Python "
        f"{machine['python']}, jax {machine['jax']}"
    )
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written to {path}")
    return result
