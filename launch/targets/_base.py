"""What all targets share: a run as words of a command line, options with errors of one line, the
exit statuses of a run, handing a text to a cluster's own command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

# Exit statuses of `jaxvl.train` (its docstring has them all).
DONE = 0
WRONG = 2  # a config or an option
EVALUATORS = 3  # trained and saved, but an evaluator failed
STOPPED = 75  # by a signal, with everything saved; the same command goes on
# What starting the same command again would not change.
FINAL = (DONE, WRONG, EVALUATORS)

PORT = 8476  # of process 0, where the cluster does not choose one
TOGETHER = "--coordinator=auto"  # JAX finds the other processes by itself
DEVICES = "--config.resume.devices"  # how many a config is for, of a run that goes on with fewer

# Targets whose machines have an interpreter of their own.
ELSEWHERE = ("gke", "skypilot", "tpu_vm", "xpk")

Options = argparse.Namespace


class UsageError(Exception):
    """An option that cannot be used: its name, its value and what is valid, as a line."""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are lines."""

    def __init__(self, prog: str, text: str | None):
        super().__init__(
            prog=prog,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('submit.py ')}: {message}")

    def read(self, words: Sequence[str], target: str) -> Options:
        """The options of a target. Raises UsageError."""
        options, unknown = self.parse_known_args(words, Options(target=target))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown[0])}")
        return options

    def _hint(self, word: str) -> str:
        """What may have been meant by a word that is none of the options."""
        name = word.partition("=")[0]
        of_run = not name.startswith("-") or re.fullmatch(r"--(workdir|config)(\..*)?", name)
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        if close and not of_run:
            return f"; did you mean {close[0]}?"
        return "; words of the run come after --: -- --config=FILE --workdir=FOLDER"


@dataclasses.dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
      module: a command of jaxvl.
      words: its arguments.
      python: the interpreter, where it runs.
      root: the project's folder, where it runs.
      name: of the job.
    """

    module: str
    words: tuple[str, ...]
    python: str
    root: str
    name: str

    @classmethod
    def of(cls, options: Options, words: Sequence[str], here: pathlib.Path) -> Run:
        """Raises UsageError where the words cannot be those of a run."""
        if not words:
            raise UsageError(
                "needs the words of the run after --: -- --config=FILE --workdir=FOLDER"
            )
        for needed in ("--config", "--workdir"):
            if options.module == "jaxvl.train" and not value_of(words, needed):
                raise UsageError(f"needs {needed}=… after --")
        for word in words:
            own = re.match(r"--(coordinator|processes|process)\b", word)
            if own and word != TOGETHER:
                raise UsageError(f"{word.split('=')[0]} after -- is given by the launcher")
        there = options.target in ELSEWHERE or vars(options).get("image")
        python = "python" if there else sys.executable
        return cls(
            options.module,
            tuple(words),
            options.python or python,
            options.root or str(here),
            options.name or job_name(words),
        )

    @property
    def command(self) -> list[str]:
        """The words that run it."""
        return [self.python, "-m", self.module, *self.words]

    def value(self, option: str) -> str | None:
        """Of an option of the run."""
        return value_of(self.words, option)

    def shell(self, *more: str) -> str:
        """The command for a shell. `more`: words whose variables the shell replaces."""
        return " ".join([shlex.join(self.command), *(f'"{word}"' for word in more)])


def value_of(words: Sequence[str], option: str) -> str | None:
    """Value of an option among the words of a run, `--OPTION=VALUE` or `--OPTION VALUE`, the last
    one; None where it is not given."""
    value = None
    for word, following in zip(words, [*words[1:], "--"]):
        if word.startswith(f"{option}="):
            value = word.partition("=")[2]
        if word == option and not following.startswith("--"):
            value = following
    return value


def job_name(words: Sequence[str]) -> str:
    """A name for a job that Kubernetes, too, accepts: of the work folder, or else of the config."""
    for option in ("--workdir", "--config"):
        path = value_of(words, option) or ""
        stem = path.rstrip("/").rpartition("/")[2].partition(".py")[0]
        name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:28].rstrip("-")
        if name:
            return name if name[0].isalpha() else f"run-{name}"[:28]
    return "jaxvl"


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Raises UsageError where one of the options was given, which would have no effect."""
    for name in names:
        if vars(options)[name] not in (None, False, []):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{options.target}: argument {option}: {why}")


def add_shared(parser: Parser) -> None:
    """Options of every target."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be submitted; submit nothing"
    )
    parser.add_argument(
        "--module", default="jaxvl.train", help="command of jaxvl (default: jaxvl.train)"
    )
    parser.add_argument("--name", type=label, help="of the job (default: from --workdir)")
    parser.add_argument(
        "--python", help="interpreter where it runs (default: this one; python in an image)"
    )
    parser.add_argument(
        "--root", help="the project's folder where it runs (default: this one; that of an image)"
    )


# --------------------------------------------------------------------------------------------------
# Types of options; `argparse` says the sentence behind the option's name


def count(text: str) -> int:
    return _whole(text, 1)


def number(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least}")
    return int(text)


def label(text: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be lower-case letters, digits and '-', 42 at most, a letter first"
        )
    return text


def assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def add_environment(parser: Parser) -> None:
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="of the environment of the run; may be repeated",
    )


def add_image(parser: Parser, required: bool = False) -> None:
    parser.add_argument("--image", required=required, help="container image with the project in it")


# --------------------------------------------------------------------------------------------------
# Handing over


def hand_over(command: Sequence[str], text: str) -> int:
    """Gives `text` to a command's standard input; its exit status.

    Raises:
      UsageError: the command is not there.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(
            f"needs the command {command[0]!r}, which is not on this machine's PATH; --dry-run "
            "prints what it would be given"
        )
    return subprocess.run(command, input=text, text=True).returncode
