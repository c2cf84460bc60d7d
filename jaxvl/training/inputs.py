"""What a run reads: the corpora of its tasks and evaluators, and its tokenizer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.corpora.prepared import prepare_all
from jaxvl.data.tokenizers import Tokenizer, make_tokenizer
from jaxvl.training.experiment import Experiment


def prepare_corpora(experiment: Experiment, log: Callable[[str], None]) -> dict[Any, Any]:
    """Corpus config -> prepared corpus, for all tasks and evaluators; built once each."""
    configs = {t.data.corpus for t in experiment.tasks.values()} | {e.corpus for e in experiment.evals.values()}
    corpora = prepare_all(configs, log)
    for name, task in experiment.tasks.items():
        split, splits = task.data.split, corpora[task.data.corpus].splits
        check(
            split in splits,
            f"tasks.{name}.data.split",
            f"{split!r} is not a split of the corpus{nearest(split, splits)} (splits: {', '.join(splits)})",
        )
        try:
            found = task.data.classes(corpora[task.data.corpus])
        except ConfigError as error:
            raise error.under(f"tasks.{name}.data") from None
        for key, use in task.objectives.items():
            if found and (head := getattr(use.objective, "head", None)) is not None:
                heads, k = getattr(experiment.model, "classes", {}), len(found[1])
                problem = (
                    f"{heads.get(head)!r} classes; must be {k}, for {task.data.attribute!r} of the corpus (tasks.{name}.objectives.{key})"
                )
                check(heads.get(head) == k, f"model.classes.{head}", problem)
    return corpora


def task_tokenizer(experiment: Experiment, corpora: dict[Any, Any]) -> Tokenizer:
    """The tokenizer; a vocabulary that is trained is trained on the texts of all tasks' splits, in the languages that they read."""
    read = dict.fromkeys((t.data.corpus, t.data.split, t.data.locales) for t in experiment.tasks.values() if t.data.locales != ())
    texts = itertools.chain.from_iterable(corpora[corpus].texts(split, locales) for corpus, split, locales in read)
    return make_tokenizer(experiment.tokenizer, texts, _origin([(corpora[corpus], split, locales) for corpus, split, locales in read]))


def _origin(read: Sequence[tuple[Any, str, Sequence[str] | None]]) -> str:
    """Says by content what is read: (corpus, split, languages). Empty where a corpus does not know its content; then nothing is kept."""
    fingerprints = [getattr(corpus, "fingerprint", None) for corpus, _, _ in read]
    if None in fingerprints:
        return ""
    return json.dumps(sorted(json.dumps([own, split, locales]) for own, (_, split, locales) in zip(fingerprints, read)))
