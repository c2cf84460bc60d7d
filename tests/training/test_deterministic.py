"""XLA's flags of a run that is to give the same bits each time."""

import os
import subprocess
import sys

import jax
import processes
import pytest
import tiny

from jaxvl.config import ConfigError
from jaxvl.training import deterministic
from jaxvl.training.deterministic import FLAGS, make_deterministic

# The options that XLA gives a program, of which its flags are a part.
OPTIONS = """
from jax._src.lib import xla_client
print(xla_client.CompileOptions().SerializeAsString().hex())
"""
TRAINED = """
import sys
from jaxvl import train
assert train.main(sys.argv[1:]) == 0
"""


def last_line(code, *arguments, flags=()):
    """What a fresh process says at last on standard output."""
    given = [os.environ["XLA_FLAGS"], "--xla_force_host_platform_device_count=2", *flags]
    env = {**os.environ, "PYTHONPATH": str(processes.ROOT), "XLA_FLAGS": " ".join(given)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_flags_reach_xla_and_two_runs_agree_bit_for_bit(tmp_path):
    wanted = last_line(OPTIONS, flags=[f"{flag}=true" for flag in FLAGS])
    assert wanted != last_line(OPTIONS)
    for name in ("one", "two"):
        config = tiny.config_file(tmp_path / f"{name}.py", steps=3, deterministic=True)
        command = (f"--config={config}", f"--workdir={tmp_path / name}")
        assert last_line(TRAINED + OPTIONS, *command) == wanted
    tiny.assert_same_state(tmp_path / "one", tmp_path / "two", 3)


@pytest.fixture
def no_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")


def test_flags_are_added_before_xla_is_used_and_once(no_flags, monkeypatch):
    monkeypatch.setattr(deterministic.xla_bridge, "backends_are_initialized", lambda: False)
    for _ in range(2):
        make_deterministic()
        assert os.environ["XLA_FLAGS"].split() == [
            "--xla_dump_to=x",
            *(f"{flag}=true" for flag in FLAGS),
        ]


def test_too_late_is_an_error_on_a_gpu_and_nothing_elsewhere(no_flags, monkeypatch):
    assert jax.devices()  # XLA is in use
    make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match="deterministic: XLA is in use already; set XLA_FLAGS="):
        make_deterministic()


def test_a_flag_that_says_the_opposite_is_an_error(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAGS[0]}=true {FLAGS[0]}=false")
    with pytest.raises(ConfigError, match=f"deterministic: XLA_FLAGS has {FLAGS[0]}=false"):
        make_deterministic()
