"""The jobs of a run: which are due, and what they leave."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.aliases import Tree
from jaxvl.config import ConfigError, to_dict
from jaxvl.data.sources.base import Log, Source
from jaxvl.data.sources.opened import opened
from jaxvl.data.tables import Tabled, read_table, remove_older, write_table
from jaxvl.evals.encoders import Encoders
from jaxvl.jobs.base import Job
from jaxvl.sharding import hosts
from jaxvl.training.experiment import Experiment
from jaxvl.training.tables import RunTables
from jaxvl.training.writer import Writer


class RunJobs:
    """Runs the jobs of an experiment and keeps their tables.

    Args:
      tables: of the run.
      sources: task -> its source as it was opened.
      writer: says and records what was made.

    Raises:
      ConfigError: at `after.NAME.source`, where a job's own source cannot be opened.
    """

    def __init__(
        self,
        experiment: Experiment,
        tables: RunTables,
        sources: Mapping[str, Source],
        writer: Writer,
    ):
        self._experiment = experiment
        self._tables = tables
        self._sources = dict(sources)
        self._writer = writer
        self._own = {
            name: _open(name, job, writer.say)
            for name, job in experiment.after.items()
            if job.source is not None
        }

    def due(self, step: int) -> dict[str, Job]:
        """Jobs to run with the weights of `step`, each after those whose tables it reads."""
        last = self._experiment.steps
        return {
            name: self._experiment.after[name]
            for name in self._experiment.jobs_in_order
            if self._experiment.after[name].due(step, last)
        }

    def check(self, encoders: Encoders, step: int) -> None:
        """Raises ConfigError under `after.NAME`, where a job cannot work on model and source."""
        for name, job in self._experiment.after.items():
            source = self._source(name, job, step)
            if source is not None:  # else it is checked before it runs
                _check(name, job, encoders, source)

    def sources(self, step: int) -> dict[str, Source]:
        """Task -> its source with the tables that it reads at `step`; at the end of the run, those
        of its last step. Raises ConfigError."""
        step = min(step, self._experiment.steps - 1)
        return {
            task: self._tables.onto(task, source, step) for task, source in self._sources.items()
        }

    def renewed(self, step: int) -> dict[str, Source]:
        """Those of tasks that read a table which was made at `step`."""
        due = self.due(step)
        return {
            task: self._tables.onto(task, source, step)
            for task, source in self._sources.items()
            if not due.keys().isdisjoint(self._tables.reads_own(task))
        }

    def run(self, step: int, encoders: Encoders, oldest: int) -> None:
        """Runs the jobs that are due at `step`, but those that are done. All processes call it.

        Args:
          encoders: with the weights of that step.
          oldest: step of the oldest checkpoint that the run may go on from; tables that none of
            them needs are removed.
        """
        weights = None
        for name, job in self.due(step).items():
            source = self._source(name, job, step)
            weights = weights or digest(encoders.weights)
            made_from = {
                "job": to_dict(job),
                "source": source.fingerprint,
                "weights": weights,
                "step": step,
            }
            others = job.others()
            if others is not None:
                made_from["others"] = others
            self._make(name, job, step, encoders, source, made_from)
            if job.every and jax.process_index() == 0:
                needed = min(oldest, self._experiment.steps - 1) // job.every * job.every
                remove_older(self._tables.folder / name, needed)

    def _make(
        self,
        name: str,
        job: Job,
        step: int,
        encoders: Encoders,
        source: Source,
        made_from: Mapping[str, Any],
    ) -> None:
        """One job, where its table is not there."""
        made_from = json.loads(json.dumps(made_from))
        folder = self._tables.folder / name
        _check(name, job, encoders, source)
        if hosts.from_process_0(lambda: _made_from(folder, step) == made_from):
            return
        self._writer.say(f"job {name} with the weights of step {step} …")
        began = time.perf_counter()
        whole = source
        while isinstance(whole, Tabled):
            whole = whole.source
        write_table(
            folder / str(step),
            job.run(encoders, source),
            records=len(source),
            source=whole.fingerprint,
            made_from=made_from,
            step=step,
            numbers=job.numbers,
        )
        hosts.from_process_0(lambda: True)  # the others read it once the first has written it
        seconds = time.perf_counter() - began
        self._writer.record(step, "event", f"table/{name}", {"seconds": seconds})

    def _source(self, name: str, job: Job, step: int) -> Source | None:
        if job.source is not None:
            return self._tables.for_job(name, self._own[name], None, step)
        task = job.task or next(iter(self._sources))
        return self._tables.for_job(name, self._sources[task], task, step)


def _open(name: str, job: Job, log: Log) -> Source:
    try:
        return opened(job.source, log)
    except ConfigError as error:
        raise error.under(f"after.{name}.source") from None


def _check(name: str, job: Job, encoders: Encoders, source: Source) -> None:
    try:
        job.check(encoders, source)
    except ConfigError as error:
        raise error.under(f"after.{name}") from None


def _made_from(folder: Any, step: int) -> Any:
    """What the table of exactly this step was made from; None where there is none."""
    table = read_table(folder, step)
    return table.made_from if table is not None and table.step == step else None


def digest(weights: Tree) -> str:
    """A hash of arrays, the same on any mesh: sums of their bits, which have no rounding."""
    arrays = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(weights)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    }
    sums = {name: int(value) for name, value in jax.device_get(_sums(arrays)).items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sum(x) for name, x in arrays.items()}


def _sum(x: jax.Array) -> jax.Array:
    """Sum modulo 2^32 of the bytes of an array, each times an odd number of its place."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    parts = jax.lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32)
    place = jnp.zeros(parts.shape, jnp.uint32)
    for axis, size in enumerate(parts.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, parts.shape, axis)
    return jnp.sum(parts * (place * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)
