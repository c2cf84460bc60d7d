"""SIGTERM ends a process at once while it has nothing to lose, and is noted otherwise."""

import signal
import subprocess
import sys
import time

import processes
import pytest

from jaxvl.command import STOPPED
from jaxvl.sharding.hosts import StopSignal

# A call that lets no handler of Python run until it is over, as a compilation does.
SCRIPT = """
import hashlib
import os
import signal
import sys
import time
from jaxvl.sharding.hosts import StopSignal

def long():
    print("BUSY", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))

with StopSignal() as stop:
    if sys.argv[1] == "at_once":
        with stop.at_once("before the first step"):
            long()
    elif sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        print("BUSY", flush=True)
        with stop.at_once("while the weights of step 3 were evaluated"):
            long()
    else:
        with stop.at_once("before the first step"):
            pass
        long()
print("ended with", stop.name, flush=True)
"""
MINUTES = 2_000_000_000
SECONDS = 5_000_000


def start(how, rounds):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how, str(rounds)],
        cwd=processes.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "BUSY\n"
    return process


def test_sigterm_ends_a_process_that_loses_nothing_while_it_is_busy():
    process = start("at_once", MINUTES)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == STOPPED
    assert said == "stopped by SIGTERM before the first step; nothing is lost\n"


def test_sigterm_that_came_before_is_obeyed_as_soon_as_nothing_is_lost():
    """One that comes while a state is saved, say, before it is evaluated for long."""
    out, said = start("before", MINUTES).communicate(timeout=60)
    assert out == "" and said == (
        "stopped by SIGTERM while the weights of step 3 were evaluated; nothing is lost\n"
    )


def test_sigterm_is_noted_where_something_would_be_lost():
    process = start("later", SECONDS)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "ended with SIGTERM\n")


def test_handlers_and_the_wakeup_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._receive
        with stop.at_once("never"):
            assert stop._now == "never"
        assert stop._now is None
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    fd = signal.set_wakeup_fd(-1)
    assert fd == -1


def test_a_second_signal_ends_the_process_as_ever():
    # A shell starts processes in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopSignal():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
