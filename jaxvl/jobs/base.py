"""What every job is: its options, and columns over the records of a source."""

from __future__ import annotations

import abc
import dataclasses
from typing import Annotated, Any, ClassVar

from jaxvl.aliases import Json
from jaxvl.config import PathText, Range, check
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.encoders import Encoders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(abc.ABC):
    """A registered frozen dataclass.

    A job that is killed begins anew. One that is done is not repeated: its table says what it was
    made from.

    Attributes:
      every: steps between two runs. 0: it runs once, after the last step. Otherwise it runs before
        the first step, after every so many, and after the last one.
      task: whose source it reads, with the tables that this task names; None: the first task's.
      source: records by name of their format, instead of a task's source.
      tables: name -> further table whose columns it reads: its folder, or the name of one that
        another job of this run makes.
      numbers: columns of the result whose values are numbers of records of the source.
    """

    numbers: ClassVar[tuple[str, ...]] = ()

    every: Annotated[int, Range(0, 2**31 - 1)] = 0
    task: str | None = None
    source: Annotated[Any, SOURCES] | None = None
    tables: dict[str, PathText] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check(
            self.task is None or self.source is None,
            "task",
            f"{self.task!r}: a job reads a task's source or one of its own; leave one of them out",
        )

    def due(self, step: int, last: int) -> bool:
        """Whether it runs with the weights of `step` in a run of `last` steps."""
        return step == last or (self.every > 0 and step % self.every == 0)

    def check(self, encoders: Encoders, source: Source) -> None:  # noqa: B027 (some need nothing)
        """Raises ConfigError, at one of its own fields, where model and source are not what `run`
        needs. It computes nothing; the weights of `encoders` may be shapes."""

    def others(self) -> Json:
        """What tells the further records that it reads from others, beside its own source; None
        where there are none. A table that was made from others is made anew."""
        return None

    @abc.abstractmethod
    def run(self, encoders: Encoders, source: Source) -> Columns:
        """Column -> array [n, …], or its blocks of rows in order, over the n records of the source.

        `tables.PRESENT`, bool [n], says which records have values; without it all have. Every
        process makes the call and gets the same; equal weights and records give equal columns.

        Raises:
          DataError: there is nothing to work on.
          EvaluatorError: an error of the source that is no bad record.
        """
