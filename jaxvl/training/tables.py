"""The tables that the tasks and jobs of a run read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from jaxvl import paths
from jaxvl.config import ConfigError, check, to_dict
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import SavedTable, Tabled, named_table, read_table
from jaxvl.training.experiment import Experiment


class RunTables:
    """Finds tables: by their folder, or by their name among those that the run makes itself.

    A table that the run makes while it trains is, at each step, that of the last step at which its
    job was due. So what a step reads depends on nothing but its number.

    Args:
      workdir: of the run.
    """

    def __init__(self, experiment: Experiment, workdir: paths.Path):
        self.folder = workdir / "tables"
        self._experiment = experiment

    def reads_own(self, task: str) -> list[str]:
        """Tables of a task that the run makes itself."""
        named = self._experiment.tasks[task].data.tables
        return [where for where in named.values() if is_own(where)]

    def onto(self, task: str, source: Source, step: int | None) -> Source | None:
        """A task's source with the columns of the task's tables, as they are at `step`.

        Args:
          step: None: before anything is known of the run's own tables; None is returned where the
            task reads one.

        Raises:
          ConfigError: under `tasks.TASK.data.tables`: a table is not there, or of another source.
        """
        named = self._experiment.tasks[task].data.tables
        if not named:
            return source
        if step is None and self.reads_own(task):
            return None
        try:
            identities = {
                name: self._identity(where) for name, where in named.items() if is_own(where)
            }
            return Tabled(source, self._all(named, step), identities)
        except ConfigError as error:
            raise error.under(f"tasks.{task}.data") from None

    def _made_at(self, name: str, step: int) -> int:
        """The step whose weights made the table that holds at `step`."""
        job = self._experiment.after[name]
        if job.due(step, self._experiment.steps) or not job.every:
            return step
        return step // job.every * job.every

    def _is_made(self, name: str, step: int) -> bool:
        table = read_table(self.folder / name, step)
        return table is not None and table.step == self._made_at(name, step)

    def _at(self, name: str, step: int) -> SavedTable:
        made = self._made_at(name, step)
        table = read_table(self.folder / name, made)
        check(
            table is not None and table.step == made,
            f"tables.{name}",
            f"{str(self.folder / name)!r} lacks the table of step {made}, which the run needs to "
            f"go on from step {step}; it was removed",
        )
        return table

    def _identity(self, name: str) -> str:
        """Of a table that changes while the run reads it: what makes it."""
        made_by = json.dumps(to_dict(self._experiment.after[name]), sort_keys=True)
        return hashlib.sha256(made_by.encode()).hexdigest()

    def for_job(self, name: str, source: Source, task: str | None, step: int) -> Source | None:
        """The source of job `name`, with its own tables and those of its task; None where one of
        them is not made yet.

        Raises:
          ConfigError: under `after.NAME.tables` or `tasks.TASK.data.tables`, as `onto`.
        """
        named = self._experiment.after[name].tables
        needed = [where for where in named.values() if is_own(where)]
        if task is not None and name not in self.reads_own(task):
            needed += self.reads_own(task)
        if not all(self._is_made(where, step) for where in needed):
            return None
        if task is not None and name not in self.reads_own(task):
            source = self.onto(task, source, step)
        if not named:
            return source
        try:
            return Tabled(source, self._all(named, step))
        except ConfigError as error:
            raise error.under(f"after.{name}") from None

    def _all(self, named: Mapping[str, str], step: int) -> dict[str, SavedTable]:
        """Name -> table. Raises ConfigError under `tables`."""
        return {
            name: self._at(where, step) if is_own(where) else named_table(where, f"tables.{name}")
            for name, where in named.items()
        }


def is_own(where: str) -> bool:
    """Whether a table is named as one that the run makes itself; others are named by their
    folder."""
    return "/" not in where
