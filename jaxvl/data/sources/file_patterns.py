"""Lists of shards as teams write them: braces, globs, `::` between several."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from jaxvl import paths
from jaxvl.config import ConfigError, check
from jaxvl.config.errors import shown

MOST_FILES = 1_000_000
LONGEST = 4096  # characters of a pattern
DEEPEST = 32  # braces inside of each other
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d{1,18}))?")


def expand_files(patterns: str | Sequence[str], field: str, ending: str = ".tar") -> list[str]:
    """Names of files, in the order of the patterns; those of a glob or of a folder are sorted.

    Args:
      patterns: texts with braces (`{00000..00099}`, `{a,b}`), globs or folders; `::` joins several
        in one text.
      field: name of the config's field, for messages.
      ending: of the files that are meant by a folder's name.

    Raises:
      ConfigError: a pattern cannot be used, nothing matches a glob, or a file is named twice.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    files: list[str] = []
    for text in texts:
        for pattern in text.split("::"):
            check(
                pattern.strip() != "",
                field,
                f"{text!r} holds an empty name; must be a file, a folder or a pattern",
            )
            check(not pattern.startswith("pipe:"), field, _no_pipe(pattern))
            files += _expand(pattern.removeprefix("file:"), field, ending)
            check(len(files) <= MOST_FILES, field, f"{text!r} names more than {MOST_FILES:,} files")
    check(len(files) > 0, field, "names no files")
    _check_twice(files, field)
    return files


def _no_pipe(pattern: str) -> str:
    """What to write instead of a command whose output is read."""
    url = re.search(r"(?:s3|gs|https?)://\S+", pattern)
    instead = url[0] if url else "s3://…, gs://…, https://… or a local path"
    return (
        f"{pattern!r} is a command, whose output can only be read from its start; write "
        f"{instead!r}, which is read in parts"
    )


def _expand(pattern: str, field: str, ending: str) -> list[str]:
    if not paths.is_remote(pattern) and os.path.isfile(pattern):
        return [pattern]  # whatever it is called
    found: list[str] = []
    names = expand_braces(pattern, field)
    for name in names:
        # Of many names that end as files do, each would have to be asked for.
        is_file = len(names) > 1 and name.endswith(ending)
        found += _matching(name, field, ending, is_file)
    return found


def _matching(name: str, field: str, ending: str, is_file: bool) -> list[str]:
    """The file itself, the files in a folder, or those that match a glob."""
    try:
        if not is_file and not paths.is_remote(name) and os.path.isdir(name):
            name = os.path.join(name, f"*{ending}")
        elif name.endswith("/"):
            name = f"{name}*{ending}"
        has_glob = any(sign in name for sign in "*[") or (
            "?" in name and paths.scheme_of(name) not in paths.READ_ONLY
        )
        if not has_glob:
            return [name]
        files = paths.find_files(name)
    except OSError as error:
        raise ConfigError(field, str(error)) from None
    check(len(files) > 0, field, f"{name!r}: no file matches")
    return files


def _check_twice(files: Sequence[str], field: str) -> None:
    seen: set[str] = set()
    for file in files:
        check(
            file not in seen,
            field,
            f"{file!r} is named twice; every record is read once, a weight is the sampler's",
        )
        seen.add(file)


def expand_braces(pattern: str, field: str) -> list[str]:
    """`a{1..3}b{x,y}` -> a1bx, a1by, a2bx, … as the shell does; a pattern without a whole brace
    stays as it is.

    Raises:
      ConfigError: it stands for too many names, or is too long or too deep.
    """
    check(
        len(pattern) <= LONGEST,
        field,
        f"{shown(pattern)} has {len(pattern):,} characters; must have at most {LONGEST:,}",
    )
    depth = 0
    for sign in pattern:
        depth += (sign == "{") - (sign == "}" and depth > 0)
        check(depth <= DEEPEST, field, f"{shown(pattern)} has braces more than {DEEPEST} deep")
    return _expand_braces(pattern, field)


def _expand_braces(pattern: str, field: str) -> list[str]:
    opened = _first_group(pattern)
    if opened is None:
        return [pattern]
    start, stop, commas = opened
    inside = pattern[start + 1 : stop]
    choices = _choices(pattern, start, stop, commas, field) if commas else _range(inside, field)
    if choices is None:  # braces around something else
        inner = _expand_braces(inside, field)
        heads = [f"{pattern[:start]}{{{text}}}" for text in inner]
    else:
        heads = [f"{pattern[:start]}{choice}" for choice in choices]
    tails = _expand_braces(pattern[stop + 1 :], field)
    check(
        len(heads) * len(tails) <= MOST_FILES,
        field,
        f"{pattern!r} stands for more than {MOST_FILES:,} files",
    )
    return [head + tail for head in heads for tail in tails]


def _first_group(pattern: str) -> tuple[int, int, list[int]] | None:
    """Where the first whole brace opens and closes, and the commas right inside of it."""
    start = pattern.find("{")
    while start >= 0:
        depth = 0
        commas = []
        for at in range(start, len(pattern)):
            sign = pattern[at]
            depth += (sign == "{") - (sign == "}")
            if sign == "," and depth == 1:
                commas.append(at)
            if depth == 0:
                return start, at, commas
        start = pattern.find("{", start + 1)
    return None


def _choices(pattern: str, start: int, stop: int, commas: Sequence[int], field: str) -> list[str]:
    ends = [*commas, stop]
    starts = [start, *commas]
    choices: list[str] = []
    for left, right in zip(starts, ends):
        choices += _expand_braces(pattern[left + 1 : right], field)
        check(
            len(choices) <= MOST_FILES,
            field,
            f"{pattern!r} stands for more than {MOST_FILES:,} files",
        )
    return choices


def _range(inside: str, field: str) -> list[str] | None:
    """Numbers or letters of `FIRST..LAST` or `FIRST..LAST..STEP`; None for something else."""
    numbers = _RANGE.fullmatch(inside)
    letters = _LETTERS.fullmatch(inside)
    match = numbers or letters
    if match is None:
        return None
    first, last, step = match.groups()
    low, high = (int(first), int(last)) if numbers else (ord(first), ord(last))
    stride = abs(int(step or 1)) or 1
    check(
        abs(high - low) // stride < MOST_FILES,
        field,
        f"{{{inside}}} stands for more than {MOST_FILES:,} files",
    )
    values = range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)
    if letters:
        return [chr(value) for value in values]
    padded = any(
        text.lstrip("-").startswith("0") and len(text.lstrip("-")) > 1 for text in (first, last)
    )
    width = max(len(first), len(last)) if padded else 0
    return [f"{value:0{width}d}" for value in values]
