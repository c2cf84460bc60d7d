"""The one error of a config, and the parts of its sentence."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from jaxvl import paths

MOST_SHOWN = 120  # characters of a value in a message


class ConfigError(ValueError):
    """A config value that cannot be used.

    Raised inside a dataclass's `__post_init__` with the name of its own field; `resolve` puts the
    path before it.

    Attributes:
      key: path of the key, relative to whoever raised it (`"optim.lr"`).
      problem: the rest of the sentence: the value and what would be valid.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem

    def under(self, path: str) -> ConfigError:
        """The same error seen from one level further out."""
        return ConfigError(f"{path}.{self.key}" if path else self.key, self.problem)


def check(ok: bool, key: str, problem: str) -> None:
    """Raises `ConfigError(key, problem)` unless `ok`."""
    if not ok:
        raise ConfigError(key, problem)


def to_path(text: str | os.PathLike, key: str) -> paths.Path:
    """The path that a text of a config or a command line names, local or remote. Raises ConfigError
    where it can be none."""
    try:
        return paths.as_path(text)
    except paths.PathError as error:
        raise ConfigError(key, str(error)) from None


def nearest(word: object, known: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` where something known is close to `word`, else an empty string."""
    text = word if isinstance(word, str) else shown(word)
    close = difflib.get_close_matches(text[:MOST_SHOWN], [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """`repr(value)` on one line, cut where it is long; never raises."""
    if isinstance(value, int) and value.bit_length() > 4 * MOST_SHOWN:
        # repr refuses integers of more than 4,300 digits
        return f"an integer of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return one_line(text)


def one_line(text: object) -> str:
    """A text without line breaks, cut after a few lines' worth."""
    words = " ".join(str(text)[: 20 * MOST_SHOWN].split())
    return words if len(words) <= 4 * MOST_SHOWN else words[: 4 * MOST_SHOWN] + "…"


def describe_exception(error: BaseException, file: str) -> str:
    """What an exception says, on one line, with the line of `file` that raised it or led to it."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: {one_line(error.msg)}"
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    what = f"{type(error).__name__}: {one_line(error)}"
    return what if line is None else f"line {line}: {what}"
