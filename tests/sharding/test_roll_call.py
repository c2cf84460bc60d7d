"""Processes wait for each other by name before JAX connects them; here they are threads."""

import concurrent.futures
import contextlib
import json
import socket
import time

import pytest

from jaxvl.sharding import roll_call as module
from jaxvl.sharding.roll_call import NotAllHere, roll_call


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool


def come(pool, address, count, indices, seconds=20.0, **options):
    return [pool.submit(roll_call, address, count, i, seconds, **options) for i in indices]


def speak(address, **said):
    """A process as the register sees it; its connection."""
    host, port = address.split(":")
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            connection = socket.create_connection((host, int(port)))
            connection.sendall(json.dumps(said).encode() + b"\n")
            return connection
        time.sleep(0.05)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_that_have_come_know_the_hosts(pool, address, order):
    waiting = []
    for i in order:
        waiting += come(pool, address, 3, [i])
        time.sleep(0.2)
    assert [one.result() for one in waiting] == [[socket.gethostname()] * 3] * 3


def test_the_address_is_free_afterwards(pool, address):
    for _ in range(3):
        for one in come(pool, address, 2, [0, 1]):
            one.result()
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        pass


def test_who_has_not_come_is_named_to_all_that_have(pool, address):
    began = time.monotonic()
    waiting = come(pool, address, 4, [0, 2], seconds=3.0)
    here = socket.gethostname()
    for one in waiting:
        with pytest.raises(NotAllHere) as told:
            one.result()
        assert str(told.value) == (
            f"2 of 4 processes have not come within 3 s: 1, 3; here are 0 ({here}), 2 ({here})"
        )
    assert time.monotonic() - began < 8


def test_one_that_died_while_it_waited_is_struck_off(pool, address):
    waiting = come(pool, address, 3, [0], seconds=4.0)
    speak(address, process=1, processes=3, host="one").close()
    two = speak(address, process=2, processes=3, host="two")
    with pytest.raises(NotAllHere, match=r": 1; here are 0 \(.*\), 2 \(two\)$"):
        waiting[0].result()
    two.close()


def test_one_that_was_started_anew_counts_once(pool, address):
    (first,) = come(pool, address, 3, [0])
    old = speak(address, process=1, processes=3, host="old")
    time.sleep(0.2)
    new = speak(address, process=1, processes=3, host="new")
    last = speak(address, process=2, processes=3, host="two")
    assert first.result() == [socket.gethostname(), "new", "two"]
    assert json.loads(last.makefile("rb").readline())["hosts"] == first.result()
    for connection in (old, new, last):
        connection.close()


def test_strangers_are_not_counted(pool, address):
    waiting = come(pool, address, 2, [0])
    connections = [speak(address, word="x"), speak(address)]
    waiting += come(pool, address, 2, [1])
    assert waiting[0].result() == waiting[1].result() == [socket.gethostname()] * 2
    for connection in connections:
        connection.close()


def test_processes_that_were_told_different_numbers(pool, address):
    zero, one = come(pool, address, 2, [0]) + come(pool, address, 4, [3])
    for waiting in (zero, one):
        with pytest.raises(NotAllHere, match=r"^process 3 \(.*\) was told of 4 processes, process"):
            waiting.result()


def test_one_that_cannot_reach_process_0(address):
    with pytest.raises(NotAllHere) as told:
        roll_call(address, 2, 1, seconds=1.0)
    assert str(told.value) == (
        f"process 1 of 2 ({socket.gethostname()}) cannot reach process 0 at {address} within 1 s: "
        "Connection refused"
    )


def test_process_0_says_who_is_awaited(pool, address, monkeypatch):
    monkeypatch.setattr(module, "REMIND", 1.0)
    said = []
    (zero,) = come(pool, address, 2, [0], seconds=4.0, say=said.append)
    with pytest.raises(NotAllHere):
        zero.result()
    assert said and said[0].startswith("1 of 2 processes have not come within ")
    assert said[0].endswith("; waiting")


def test_a_port_that_is_taken():
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(NotAllHere, match="^process 0 cannot listen at port [0-9]+: "),
    ):
        roll_call(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 1.0)
