"""What a rule takes away from rows. What needs Beam imports it where it is used."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jaxvl.data.preparing.gathering import PCollection
from jaxvl.data.preparing.rows import Place, Row

MOST_REASONS = 3  # of one record, in the report


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a record loses.

    Attributes:
      position: of the record.
      places: of the texts that it loses; empty: the whole record goes.
      why: the reason, for the report.
    """

    position: int
    places: tuple[Place, ...]
    why: str


@dataclasses.dataclass(frozen=True)
class Removal:
    """What a rule has taken from a record.

    Attributes:
      rule: its name.
      position: of the record.
      record: whether the record is gone, because of itself or because no text is left.
      texts: that are gone.
      why: the reasons.
    """

    rule: str
    position: int
    record: bool
    texts: tuple[str, ...]
    why: str


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may use beside the rows that are left.

    Attributes:
      raw: all rows that could be read.
      config: of the run, as JSON.
      work: folder for what a restarted run can use again.
      test_looks: (name of its list, number, perceptual hash) of every test picture; None where
        there are none.
    """

    raw: PCollection
    config: str
    work: str
    test_looks: PCollection | None


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """One rule.

    Attributes:
      name: short, and the name of its page in the report.
      says: what is kept, with the threshold.
      source: where it is from.
    """

    name: str
    says: str
    source: str

    @abc.abstractmethod
    def judged(self, rows: PCollection, context: Context) -> PCollection:
        """PCollection of Row, what is left, and Removal, what goes."""


class RowRule(Rule):
    """A rule that sees one record at a time."""

    @abc.abstractmethod
    def judge(self, row: Row) -> Loss | None: ...

    def judged(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        return rows | f"{self.name}: judge" >> beam.FlatMap(_judged, self)


def _judged(row: Row, rule: RowRule) -> Iterator[Row | Removal]:
    loss = rule.judge(row)
    return split(row, [] if loss is None else [loss], rule.name)


class JoinRule(Rule):
    """A rule that compares records with each other. It uses joins and sums by key only, never a
    table in memory."""

    @abc.abstractmethod
    def losses(self, rows: PCollection, context: Context) -> PCollection:
        """PCollection of Loss, several for one record where it has several reasons. Those of
        records that are gone do not matter."""

    def judged(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        losses = self.losses(rows, context) | f"{self.name}: by record" >> beam.Map(_by_position)
        keyed = rows | f"{self.name}: rows by record" >> beam.Map(_by_position)
        joined = {"rows": keyed, "losses": losses} | f"{self.name}: join" >> beam.CoGroupByKey()
        return joined | f"{self.name}: cut" >> beam.FlatMap(_cut_joined, self.name)


def _by_position(value: Row | Loss) -> tuple[int, Row | Loss]:
    return value.position, value


def _cut_joined(joined: tuple[int, dict[str, list[Any]]], rule: str) -> Iterator[Row | Removal]:
    for row in joined[1]["rows"]:
        yield from split(row, joined[1]["losses"], rule)


def apply(rule: Rule, rows: PCollection, context: Context) -> tuple[PCollection, PCollection]:
    """(rows that are left, removals)."""
    import apache_beam as beam

    judged = rule.judged(rows, context)
    # Filters, not tagged outputs, which not every runner has.
    left = judged | f"{rule.name}: left" >> beam.Filter(isinstance, Row)
    return left, judged | f"{rule.name}: removed" >> beam.Filter(isinstance, Removal)


def cut(row: Row, losses: Sequence[Loss], rule: str) -> tuple[Row | None, Removal | None]:
    """(what is left of a row, what it lost); None for nothing."""
    whole = any(not loss.places for loss in losses)
    there = frozenset(place for place, _ in row.texts)
    gone = there.intersection(place for loss in losses for place in loss.places)
    if not whole and not gone:
        return row, None
    left = row.without(there if whole else gone)
    record = not left.texts
    texts = tuple(text for place, text in row.texts if record or place in gone)
    reasons = sorted(
        {loss.why for loss in losses if not loss.places or gone.intersection(loss.places)}
    )
    why = "; ".join(reasons[:MOST_REASONS])
    return (None if record else left), Removal(rule, row.position, record, texts, why)


def split(row: Row, losses: Sequence[Loss], rule: str) -> Iterator[Row | Removal]:
    """What is left of a row, and what it loses."""
    left, removal = cut(row, losses, rule)
    if left is not None:
        yield left
    if removal is not None:
        yield removal
