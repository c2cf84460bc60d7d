"""Who has come to a run of several processes, asked before JAX connects them.

JAX lets the processes wait for each other at the coordinator and, once its time is over, ends all
of them with a stack trace that names none. Here every process first says its number and the name of
its host at the same address, over a plain connection: process 0 answers once all are there, and
tells each of them who is missing once the time is over.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

REMIND = 30.0  # seconds between two lines about who is awaited
RETRY = 0.5  # seconds between two tries to reach process 0
LONGEST = 1000  # bytes of what a process says


class NotAllHere(RuntimeError):
    """Some processes of a run have not come, or this one cannot reach the others."""


def roll_call(
    address: str,
    count: int,
    index: int,
    seconds: float,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Waits until all processes are there; returns the host name of each.

    Args:
      address: HOST:PORT of process 0; the port is free again afterwards.
      count: of processes.
      index: of this process.
      seconds: to wait.
      say: told by process 0 every `REMIND` seconds who is awaited.

    Raises:
      NotAllHere: naming who has not come and who has.
    """
    host, _, port = address.rpartition(":")
    me = {"process": index, "processes": count, "host": socket.gethostname()}
    if index == 0:
        return _Register(int(port), count, me["host"]).wait(seconds, say)
    return _come(host.strip("[]"), int(port), me, seconds)


def absent(count: int, hosts: Mapping[int, str], seconds: float) -> str:
    """A sentence about who has not come.

    Args:
      hosts: process -> host, of those that are there.
    """
    missing = [i for i in range(count) if i not in hosts]
    here = ", ".join(f"{i} ({hosts[i]})" for i in _first(sorted(hosts)))
    more = f" and {len(hosts) - 8} more" if len(hosts) > 8 else ""
    return (
        f"{len(missing)} of {count} processes have not come within {seconds:.0f} s: "
        f"{', '.join(map(str, _first(missing)))}{' …' if missing[8:] else ''}; "
        f"here are {here}{more}"
    )


def _first(numbers: Iterable[int]) -> Sequence[int]:
    return list(numbers)[:8]


class _Register:
    """Process 0's side: the list of those who are there. One that goes away is struck off."""

    def __init__(self, port: int, count: int, host: str):
        self._count = count
        self._hosts = {0: host}
        self._lines: dict[socket.socket, bytes] = {}
        self._numbers: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            self._server = socket.create_server(
                ("", port), family=family, backlog=count, dualstack_ipv6=dual
            )
        except OSError as error:
            raise NotAllHere(f"process 0 cannot listen at port {port}: {error}") from None
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)

    def wait(self, seconds: float, say: Callable[[str], None]) -> list[str]:
        began = time.monotonic()
        reminded = began
        try:
            while len(self._hosts) < self._count:
                now = time.monotonic()
                if now - began > seconds:
                    problem = absent(self._count, self._hosts, seconds)
                    self._answer({"problem": problem})
                    raise NotAllHere(problem)
                if now - reminded > REMIND:
                    reminded = now
                    say(f"{absent(self._count, self._hosts, now - began)}; waiting")
                for key, _ in self._selector.select(timeout=1.0):
                    self._hear(key.fileobj)
            hosts = [self._hosts[i] for i in range(self._count)]
            self._server.close()  # the port is JAX's, before anyone goes there
            self._answer({"hosts": hosts})
            return hosts
        finally:
            self._close()

    def _hear(self, connection: socket.socket) -> None:
        if connection is self._server:
            with contextlib.suppress(OSError):
                accepted, _ = self._server.accept()
                accepted.setblocking(False)
                self._lines[accepted] = b""
                self._selector.register(accepted, selectors.EVENT_READ)
            return
        try:
            received = connection.recv(LONGEST)
        except OSError:
            received = b""
        self._lines[connection] += received
        if not received or len(self._lines[connection]) > LONGEST:
            self._strike_off(connection)
        elif self._lines[connection].endswith(b"\n"):
            self._enter(connection)

    def _enter(self, connection: socket.socket) -> None:
        try:
            said = json.loads(self._lines[connection])
            number = int(said["process"])
            count = int(said["processes"])
            host = str(said["host"])
        except (ValueError, TypeError, KeyError):  # whoever that is, it is none of the processes
            self._strike_off(connection)
            return
        if count != self._count or not 0 < number < self._count:
            problem = (
                f"process {number} ({host}) was told of {count} processes, process 0 "
                f"({self._hosts[0]}) of {self._count}"
            )
            self._answer({"problem": problem}, [connection])
            self._answer({"problem": problem})
            raise NotAllHere(problem)
        for other, known in list(self._numbers.items()):
            if known == number:  # it was started anew
                self._strike_off(other)
        self._numbers[connection] = number
        self._hosts[number] = host

    def _strike_off(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._lines[connection]
        number = self._numbers.pop(connection, None)
        if number is not None:
            del self._hosts[number]
        connection.close()

    def _answer(
        self, message: Mapping[str, object], to: Iterable[socket.socket] | None = None
    ) -> None:
        line = json.dumps(message).encode() + b"\n"
        for connection in self._numbers if to is None else to:
            with contextlib.suppress(OSError):
                connection.setblocking(True)
                connection.settimeout(5.0)
                connection.sendall(line)

    def _close(self) -> None:
        self._selector.close()
        self._server.close()
        for connection in self._lines:
            connection.close()


def _come(host: str, port: int, me: Mapping[str, object], seconds: float) -> list[str]:
    """The other processes' side."""
    end = time.monotonic() + seconds
    line = json.dumps(me).encode() + b"\n"
    problem = "it does not answer"
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=5.0) as connection:
                connection.sendall(line)
                # Process 0 began to wait at another time; it speaks first where it can.
                connection.settimeout(max(end - time.monotonic(), 0.0) + REMIND)
                with connection.makefile("rb") as answers:
                    answer = answers.readline()
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if answer:
                return _read(json.loads(answer))
            problem = "it has hung up"
        time.sleep(RETRY)
    _unreachable(me, f"{host}:{port}", seconds, problem)


def _read(answer: Mapping[str, object]) -> list[str]:
    if "problem" in answer:
        raise NotAllHere(str(answer["problem"]))
    return list(answer["hosts"])


def _unreachable(me: Mapping[str, object], address: str, seconds: float, problem: str) -> NoReturn:
    raise NotAllHere(
        f"process {me['process']} of {me['processes']} ({me['host']}) cannot reach process 0 at "
        f"{address} within {seconds:.0f} s: {problem}"
    )
