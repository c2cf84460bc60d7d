"""What all commands share: `--help`, one line for errors of the user, the exit status.

A command is a module whose docstring is that text, and that ends:

    def main(argv):
        return run_command(_run, argv, (DataError,))

    if __name__ == "__main__":
        start(main, __doc__)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import logging
from rich.console import Console
from rich.markup import escape

from jaxvl.config import ConfigError
from jaxvl.sharding import hosts
from jaxvl.sharding.libtpu import deepen_stacks

FAILED = 1
WRONG = 2  # a config or an option
STOPPED = hosts.STOPPED  # by a signal, with everything saved; the same command goes on


def run_command(
    body: Callable[[Sequence[str], Console], int],
    argv: Sequence[str],
    errors: tuple[type[Exception], ...] = (),
    verbosity: int = logging.WARNING,
) -> int:
    """Exit status of a command. A ConfigError and its own errors are told in a line; any other is a
    fault of ours and is raised.

    Args:
      body: the command; it returns its exit status, and tells what goes on at the console (standard
        error).
      argv: words of the command line after the command's own.
      errors: what ends this command with status 1.
      verbosity: of what libraries log.
    """
    console = Console(stderr=True)
    logging.set_verbosity(verbosity)
    try:
        return body(argv, console)
    except ConfigError as error:
        tell(console, "config error", error)
        return WRONG
    except hosts.NotAllHere as error:
        tell(console, "start failed", error)
        return FAILED
    except errors as error:
        tell(console, type(error).__name__, error)
        return FAILED


def tell(console: Console, what: str, error: Exception) -> None:
    """An error as a line."""
    console.print(f"[bold red]{what}[/] {escape(str(error))}", soft_wrap=True)


def start(main: Callable[[list[str]], int], text: str) -> NoReturn:
    """Runs `main` with the words of the command line, or prints the text of `--help`, and ends this
    process."""
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(text)
        sys.exit(0)
    deepen_stacks()
    sys.exit(hosts.run_together(main, argv))
