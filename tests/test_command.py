"""What all commands do alike, and that each of them does it."""

import importlib
import sys

import pytest
from absl import logging

from jaxvl.command import run_command, start
from jaxvl.config import ConfigError
from jaxvl.data.records import DataError

COMMANDS = (
    "train",
    "plan",
    "evaluate",
    "benchmark",
    "caption",
    "convert",
    "data.inspect",
    "data.prepare",
)


def raising(error):
    def body(argv, console):
        raise error

    return body


@pytest.mark.parametrize(
    "error, status, line",
    [
        (
            ConfigError("--step", "'[x]' must be a number"),
            2,
            "config error --step: '[x]' must be a number",
        ),
        (DataError("a/b.tar: is missing"), 1, "DataError a/b.tar: is missing"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, status, line, capsys):
    assert run_command(raising(error), [], (DataError,)) == status
    said = capsys.readouterr()
    assert said.err == f"{line}\n" and said.out == ""


@pytest.mark.parametrize("error", [DataError("of another command"), KeyError("a bug")])
def test_other_errors_are_raised(error):
    with pytest.raises(type(error)):
        run_command(raising(error), [], (OSError,))


def test_a_command_gets_its_words_and_gives_its_status(capsys):
    def body(argv, console):
        console.print(*argv)
        return 3

    assert run_command(body, ["a", "b"], verbosity=logging.ERROR) == 3
    assert capsys.readouterr().err == "a b\n" and logging.get_verbosity() == logging.ERROR


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_every_command_tells_what_it_is_for(name, word, monkeypatch, capsys):
    command = importlib.import_module(f"jaxvl.{name}")
    monkeypatch.setattr(sys, "argv", [name, word, "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        start(command.main, command.__doc__)
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.err == ""
    assert f"python -m jaxvl.{name} " in said.out and "Exit status: 0" in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_a_wrong_option_in_a_line(name, capsys):
    if name == "data.prepare":
        pytest.importorskip("apache_beam")
    command = importlib.import_module(f"jaxvl.{name}")
    assert command.main(["--workdri=runs/x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("config error --"), lines
