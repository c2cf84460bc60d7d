"""Columns of a source as evaluators read them, without the pictures beside them."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvl.aliases import ColumnValue
from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.classes import ClassSet
from jaxvl.data.fields.caption import texts_of
from jaxvl.data.fields.numbers import same_text
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column, Kind, Source
from jaxvl.evals.result import EvaluatorError

PICTURES: tuple[Kind, ...] = ("image",)
TEXTS: tuple[Kind, ...] = ("text", "texts")
LABELS: tuple[Kind, ...] = ("class", "int", "text")
MOST = 4  # columns `name/…` that a message lists one by one
NONE = -1  # class or group of a record that has none

Columns = str | tuple[str, ...]  # one column or several


def listed(columns: Columns) -> tuple[str, ...]:
    """The columns of an option that takes one or several."""
    return (columns,) if isinstance(columns, str) else tuple(columns)


def fields_of(columns: Columns, field: str) -> list[tuple[str, str]]:
    """(column, the field that names it), for messages."""
    if isinstance(columns, str):
        return [(columns, field)]
    return [(name, f"{field}[{i}]") for i, name in enumerate(columns)]


def described(names: Collection[str]) -> str:
    """Columns in one line; of many `name/…` the first ones and how many they are."""
    families: dict[str, list[str]] = {}
    for name in names:
        first, slash, _ = name.partition("/")
        families.setdefault(f"{first}/" if slash else name, []).append(name)
    shown = []
    for family, members in families.items():
        shown += members[:MOST]
        if len(members) > MOST:
            shown[-1] += f", … ({len(members)} {family}…)"
    return ", ".join(shown) or "none"


def check_column(source: Source, name: str, kinds: Collection[Kind], field: str) -> Column:
    """Type of a column. Raises ConfigError at `field` where the source does not have it, or it is
    of another kind than these."""
    columns = source.columns
    hint = nearest(name, list(columns))
    check(
        name in columns,
        field,
        f"{name!r} is not a column of {source.name}{hint} (columns: {described(columns)})",
    )
    fit = [other for other, column in columns.items() if column.kind in kinds]
    kind = columns[name].kind
    problem = (
        f"{name!r} of {source.name} holds values of kind {kind!r}; must be {' or '.join(kinds)} "
        f"(such columns: {described(fit)})"
    )
    check(kind in kinds, field, problem)
    return columns[name]


Read = TypeVar("Read")


def read_all(source: Source, read: Callable[[int], Read]) -> list[Read | None]:
    """`read(i)` of every record of a source; None for the bad ones, on which all processes agree.

    Every process reads all records. A record that is bad in one process is left out in all of them.

    Raises:
      EvaluatorError: in every process, where `read` raised anything but BadRecord in one of them.
    """
    good = 0
    bad = 1
    failed = 2
    out: list[Read | None] = [None] * len(source)
    faults = np.full(len(source), good, np.int32)
    error: Exception | None = None
    for i in range(len(source)):
        try:
            out[i] = read(i)
        except BadRecord:
            faults[i] = bad
        except Exception as met:  # noqa: BLE001 (raised below, where all processes have learnt of it)
            faults[i] = failed
            error = met
            break
    if jax.process_count() > 1:
        faults = np.max(multihost_utils.process_allgather(faults), axis=0)
    if (faults == failed).any():
        what = (
            "another process met an error at it and names it"
            if error is None
            else f"{type(error).__name__}: {error}"
        )
        raise EvaluatorError(f"record {int(np.argmax(faults == failed))}: {what}") from error
    return [value if fault == good else None for value, fault in zip(out, faults)]


# --------------------------------------------------------------------------------------------------
# Texts


@functools.lru_cache(maxsize=8)
def all_texts(source: Source, columns: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Distinct texts of every record, by position; empty where a record is bad or has none.

    Bad records are not counted here: `Encoders.images` meets the same ones.
    """
    found = read_all(source, lambda i: texts_of(source.read(i, columns), columns))
    return tuple(tuple(dict.fromkeys(itertools.chain.from_iterable(of or ()))) for of in found)


def check_texts(source: Source, columns: Columns, field: str) -> None:
    """Checks columns of texts. Reads records until each column has a text.

    Raises:
      ConfigError: at `field`: there is none, it holds something else, or no record has a text in
        it.
    """
    check(bool(listed(columns)), field, "must name a column or several")
    for name, place in fields_of(columns, field):
        check_column(source, name, TEXTS, place)
        of_texts = [other for other, column in source.columns.items() if column.kind in TEXTS]
        problem = (
            f"{name!r}: no record of {source.name} has a text in it (columns of texts: "
            f"{described(of_texts)})"
        )
        check(_has_text(source, name), place, problem)


def _has_text(source: Source, name: str) -> bool:
    """Whether a record has a text in a column; those that are known to lack it are not read."""
    there = source.present(name)
    for i in range(len(source)) if there is None else np.flatnonzero(there).tolist():
        try:
            if texts_of(source.read(i, (name,)), (name,)):
                return True
        except BadRecord:
            continue
    return False


def text_ids(texts: Sequence[str]) -> np.ndarray:
    """Ids int32 [n] of texts; equal captions have equal ids, numbered by first appearance."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(same_text(t), len(ids)) for t in texts], np.int32)


# --------------------------------------------------------------------------------------------------
# Classes and groups


class Labels(NamedTuple):
    """Classes of the records of a source.

    Attributes:
      values: int64 [n], the class of every record; `NONE` where it has none, or is bad.
      classes: what the numbers mean. Of a column of texts they are its texts; of one of numbers
        alone, these written out.
    """

    values: np.ndarray
    classes: ClassSet


@functools.lru_cache(maxsize=8)
def values_of(source: Source, name: str) -> tuple[ColumnValue | None, ...]:
    """A column of every record, read without pictures; None where a record is bad or lacks it."""
    found = source.column(name)
    there = source.present(name)
    if found is not None and there is not None:
        return tuple(value if has else None for value, has in zip(found.tolist(), there))
    return tuple(read_all(source, lambda i: source.read(i, (name,)).get(name)))


def labels_of(
    source: Source, name: str, language: str, classes: ClassSet | None = None, field: str = "label"
) -> Labels:
    """Classes of a column of kind `class`, `int` or `text`. Numbers below zero stand for no class,
    as in many data sets.

    Args:
      language: that texts are in: those of a column of texts, and the names that they are looked up
        by.
      classes: what the column's numbers mean, or its texts name; None: what the source says.

    Raises:
      ConfigError: at `field`: there is no such column, it holds something else, or a number that is
        no class.
    """
    column = check_column(source, name, LABELS, field)
    values = values_of(source, name)
    classes = classes or column.classes
    if classes is None:
        given = {
            value
            for value in values
            if value is not None and (isinstance(value, str) or value >= 0)
        }
        place = {value: i for i, value in enumerate(sorted(given))}
        return Labels(
            np.array([place.get(value, NONE) for value in values], np.int64),
            ClassSet({language: tuple(map(str, place))}),
        )
    if column.kind == "text":
        names = class_names(classes, language, repr(name))
        place = {same_text(text): i for i, text in reversed(list(enumerate(names))) if text}
        return Labels(
            np.array([place.get(same_text(value or ""), NONE) for value in values], np.int64),
            classes,
        )
    numbers = np.array([NONE if value is None else max(value, NONE) for value in values], np.int64)
    most = numbers.max(initial=NONE)
    check(
        most < len(classes),
        field,
        f"{name!r} of {source.name} has the number {most}, but there are {len(classes)} classes",
    )
    return Labels(numbers, classes)


def class_names(classes: ClassSet, language: str, of: str) -> tuple[str | None, ...]:
    """Name of every class. Raises ConfigError at `language` where they have none in it; `of`: whose
    classes, for the message."""
    known = list(classes.names)
    problem = (
        f"{language!r}: the classes of {of} have no names in it{nearest(language, known)} "
        f"(languages: {described(known)})"
    )
    check(language in known, "language", problem)
    return classes.names[language]


def groups_of(source: Source, name: str, field: str = "group") -> np.ndarray:
    """Group of every record, int32 [n]: equal where the column's values are; a record without one
    is a group of its own.

    Raises ConfigError at `field` as `labels_of`.
    """
    check_column(source, name, LABELS, field)
    classes = source.columns[name].kind == "class"
    ids: dict[Any, int] = collections.defaultdict(lambda: len(ids))
    groups = np.empty(len(source), np.int32)
    for i, value in enumerate(values_of(source, name)):
        none = value is None or (classes and value < 0)
        groups[i] = ids[(i,) if none else value]
    return groups


def in_language(pattern: str, language: str, field: str) -> str:
    """The column that a pattern names for a language: `name/{language}` -> `name/fr`. Raises
    ConfigError at `field`."""
    left = pattern.replace("{language}", "")
    if "{" in left or "}" in left:
        raise ConfigError(field, f"{pattern!r} may hold {{language}}, and no other braces")
    return pattern.replace("{language}", language)
