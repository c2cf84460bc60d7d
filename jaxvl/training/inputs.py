"""What a run reads: the sources of its tasks and evaluators, and its tokenizer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxvl.config import ConfigError, check
from jaxvl.data.config import DataConfig
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.numbers import Label
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.sources.base import Source, SourceConfig
from jaxvl.data.sources.opened import forget, opened
from jaxvl.data.text_sample import PLAIN, sample_origin, sample_texts
from jaxvl.data.tokenizer import Tokenizer
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.objectives.classification import Classification
from jaxvl.tasks import TaskConfig
from jaxvl.training.experiment import Experiment
from jaxvl.training.tables import RunTables

VOCABULARY_SEED = 0  # the same texts in runs of other seeds, so that they share a vocabulary


def open_sources(
    experiment: Experiment, log: Callable[[str], None], tables: RunTables | None = None
) -> dict[str, Source]:
    """Task -> its source, without tables; those of the evaluators are opened as well, equal ones
    once.

    Args:
      tables: that tasks read. A task whose table is not made yet is checked when it is.

    Raises:
      ConfigError: a source, or a field that it cannot serve.
    """
    forget()
    sources = {
        name: _open(task.data.source, f"tasks.{name}.data.source", log)
        for name, task in experiment.tasks.items()
    }
    for name, evaluator in experiment.evals.items():
        for config in evaluator.sources:
            _open(config, f"evals.{name}.{_option_of(evaluator, config)}", log)
    for name, task in experiment.tasks.items():
        whole = sources[name] if tables is None else tables.onto(name, sources[name], None)
        if whole is None:
            continue
        try:
            task.data.select(whole)
        except ConfigError as error:
            raise error.under(f"tasks.{name}.data") from None
        _check_heads(experiment, name, task, whole)
    return sources


def _option_of(evaluator: Any, config: SourceConfig) -> str:
    """The option of an evaluator that holds a source."""
    options = vars(evaluator)
    return next((name for name, value in options.items() if value is config), "source")


def _open(config: SourceConfig, path: str, log: Callable[[str], None]) -> Source:
    try:
        return opened(config, log)
    except ConfigError as error:
        raise error.under(path) from None


def _check_heads(experiment: Experiment, name: str, task: TaskConfig, source: Source) -> None:
    """Raises ConfigError where a class head of the model has not as many classes as the task's
    labels."""
    for key, use in task.objectives.items():
        if not isinstance(use.objective, Classification):
            continue
        head = use.objective.head
        field = task.data.fields.get(use.objective.label)
        classes = field.classes(source) if isinstance(field, Label) else None
        if classes is None:
            continue
        given = experiment.model.capabilities().classes.get(head.partition("/")[0])
        problem = (
            f"{given!r} classes; must be {classes}, for {field.column!r} of {source.name} "
            f"(tasks.{name}.objectives.{key})"
        )
        check(given == classes, f"model.classes.{head}", problem)


def task_tokenizer(experiment: Experiment, sources: Mapping[str, Source]) -> Tokenizer:
    """The tokenizer; a vocabulary that is trained is trained on texts that the tasks read, in their
    templates, without their pictures."""
    read: dict[str, Iterator[str]] = {}
    known = True  # whether all sources say what they hold; else nothing is kept
    size = experiment.tokenizer.sample
    for name, task in experiment.tasks.items():
        source = sources[name]
        templates = vocabulary_templates(task.data, source)
        if templates:
            drawn = (source, list(templates), size, VOCABULARY_SEED)
            origin = sample_origin(*drawn, templates=templates)
            known = known and bool(origin)
            read[origin or name] = sample_texts(*drawn, templates=templates)
    texts = itertools.chain.from_iterable(read.values())
    return make_tokenizer(experiment.tokenizer, texts, json.dumps(sorted(read)) if known else "")


def vocabulary_templates(data: DataConfig, source: Source) -> dict[str, tuple[str, ...]]:
    """Columns of a source whose texts a task reads -> the templates that they are read in, both
    sorted."""
    found: dict[str, set[str]] = {}
    for field in data.fields.values():
        if isinstance(field, Caption):
            columns = [column for names, _ in field.matched(source) for column in names]
            template = field.template
        elif isinstance(field, Waveform):
            columns = [column for column in field.sounds(source).values() if column is not None]
            template = PLAIN
        else:
            continue
        for column in columns:
            found.setdefault(column, set()).add(template)
    return {column: tuple(sorted(found[column])) for column in sorted(found)}
