"""Visual question answering with a captioner, from a list of answers or written."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from jaxvl.config import ConfigError, Count, check
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Record, Source, SourceConfig
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import TEXTS, check_column, read_all
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import (
    SourceOptions,
    check_template,
    check_tokenizer,
    open_named,
    sample,
    skipped_figures,
)
from jaxvl.evals.text_scores import words
from jaxvl.evals.thumbnails import Thumbnails
from jaxvl.models.generate import Generation

TIE = 1e-6  # of log-probabilities
SHOWN = 5
CHUNK = 8  # batches whose texts are made at a time
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    w: str(i)
    for i, w in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}  # noqa: SIM905


class Question(NamedTuple):
    """A question of the record at `index`, people's answers to it, and of which kind it is."""

    index: int
    text: str
    answers: tuple[str, ...]
    kind: str


@EVALUATORS.register("vqa")
@dataclasses.dataclass(frozen=True)
class Vqa(SourceOptions):
    """Answers the questions of a source whose records have a question and people's answers (as
    `data.sources.questions`).

    The text that the captioner reads is the question, then the answer, as in the captions of such
    sources.

    Figures: `vqa_acc` (`accuracy`: min(people who gave the answer / 3, 1) for VQAv2's ten answers,
      1 or 0 where there is one),
    `vqa_acc_KIND` of each kind of question, `exact` (the commonest answer), `vqa_acc_majority` (the
    `vqa_acc` of always giving the source's commonest answer), `questions`, `skipped/CAUSE`. By
    likelihood also `vqa_acc_chance` (of a random candidate), `vqa_acc_best_possible` (the best
    candidate for every question) and `candidates`; equally likely candidates count by their mean.

    Attributes:
      question: the column of the question.
      answers: the column of the answers of all people who were asked; of kind `texts`, or `text`
        where it was one.
      kind: the column that says of which kind a question is; figures are reported for each. None:
        none are.
      method: `likelihood`: the candidate that is likeliest after the question; `generate`: whatever
        the model writes after it.
      candidates: answers to choose from: a list, or the source whose commonest answers they are,
        with the same columns (the training data; None: this one, which tells the model what can
        occur).
      most: so many of them, the commonest first (VQAv2 is usually answered from 3,129).
      per_token: divides the log-probability of a candidate by its tokens, so that long ones are not
        at a disadvantage.
      template: what is made of a question `{}`.
      generation: how answers are written; lengths include the question.
    """

    question: str = "question"
    answers: str = "answers"
    kind: str | None = "type"
    method: Literal["likelihood", "generate"] = "likelihood"
    candidates: tuple[str, ...] | Annotated[Any, SOURCES] | None = None
    most: Count = 3129
    per_token: bool = False
    template: str = "{}"
    generation: Generation = Generation()

    def __post_init__(self):
        super().__post_init__()
        check_template(self.template, "question")
        check(self.most >= 1, "most", f"{self.most!r} must be >= 1")
        check(self.candidates != (), "candidates", "must be a source or hold at least one answer")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        listed = self.candidates is None or isinstance(self.candidates, tuple)
        return (self.source,) if listed else (self.source, self.candidates)

    @property
    def figures(self) -> tuple[str, ...]:
        own = ("vqa_acc", "vqa_acc_*", "exact", "vqa_acc_majority", "questions", "skipped/*")
        return (
            (*own, "vqa_acc_chance", "vqa_acc_best_possible", "candidates")
            if self.method == "likelihood"
            else own
        )

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        if self.method == "likelihood":
            encoders.check_scores()
        else:
            encoders.check_generates(self.generation)
        check_tokenizer(encoders)
        asked = self._questions(source).asked
        check(bool(asked), "source", f"{source.name} has no record with a question and its answers")
        prompts, choices = self._ids(encoders, asked, self._candidates())
        room = self._room(encoders, choices)
        problem = (
            f"{self.template!r}: no question of {source.name} leaves room for an answer; "
            f"the shortest takes "
            f"{min(map(len, prompts))} tokens, the longest answer "
            f"{encoders.text_length - room} of {encoders.text_length}"
        )
        check(min(map(len, prompts)) <= room, "template", problem)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has a question that fits, ConfigError for a model that
        cannot answer."""
        source = self.open()
        asked, unreadable = self._questions(source)
        candidates = self._candidates()
        prompts, choices = self._ids(encoders, asked, candidates)
        room = self._room(encoders, choices)
        fits = [len(prompt) <= room for prompt in prompts]
        skipped = {
            "no question": len(source) - len(asked) - unreadable,
            "question is too long": fits.count(False),
        }
        asked = [question for question, ok in zip(asked, fits) if ok]
        prompts = [prompt for prompt, ok in zip(prompts, fits) if ok]
        faults = collections.Counter({"record cannot be read": unreadable})
        if not asked:
            raise DataError(
                f"{source.name} has no question that leaves room for an answer (skipped: "
                f"{skipped | faults})"
            )
        answer = (
            functools.partial(self._choose, choices) if self.method == "likelihood" else self._write
        )
        given, index, met = answer(encoders, Records(source, [q.index for q in asked]), prompts)
        faults.update(met)
        self.within_budget(faults, source)
        asked = [asked[i] for i in index]
        if not asked:
            raise DataError(
                f"{source.name} has no image that can be read (skipped: {skipped | faults})"
            )
        if self.method == "likelihood":
            exact, vqa, shown = _of_scores(given, candidates, asked)
            more = _of_candidates(candidates, asked)
        else:
            exact = np.array(
                [float(normalised(text) == commonest(q.answers)) for text, q in zip(given, asked)]
            )
            vqa = np.array([accuracy(text, q.answers) for text, q in zip(given, asked)])
            shown = [
                (Item(text or "(nothing)", float(v), bool(v > 0)),) for text, v in zip(given, vqa)
            ]
            more = {}
        usual = commonest([commonest(q.answers) for q in asked])
        metrics = {
            "vqa_acc": vqa.mean(),
            "exact": exact.mean(),
            **_by_kind(vqa, asked),
            "vqa_acc_majority": np.mean([accuracy(usual, q.answers) for q in asked]),
            "questions": len(asked),
            **more,
        }
        thumbnail = Thumbnails(source, encoders.preprocess, self.image)

        def row(q: int) -> GalleryRow:
            question = asked[q]
            return GalleryRow(
                "Answers",
                f"{question.text} {commonest(question.answers)}",
                thumbnail(question.index),
                shown[q],
            )

        gallery = [row(int(q)) for q in sample(len(asked), self.gallery)]
        return EvalResult(
            {k: float(v) for k, v in metrics.items()} | skipped_figures(faults, skipped), gallery
        )

    def _ids(
        self, encoders: Encoders, asked: Sequence[Question], candidates: list[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the questions, from the beginning of a text on; and of the candidates, with
        the end of a text."""
        tokenizer = encoders.tokenizer
        texts = [self.template.replace("{}", question.text) for question in asked]
        prompts = [[*tokenizer.before, *ids] for ids in tokenizer.ids(texts)]
        choices = [[*ids, tokenizer.eos_id] for ids in tokenizer.ids(candidates)]
        return prompts, choices

    def _room(self, encoders: Encoders, choices: list[list[int]]) -> int:
        """Most tokens of a question; what is written gets room for one token and the end of the
        text."""
        return encoders.text_length - max(map(len, choices), default=2)

    def _questions(self, source: Source) -> Questions:
        """Questions of a source. Raises ConfigError where it lacks one of the columns."""
        check_column(source, self.question, ("text",), "question")
        check_column(source, self.answers, TEXTS, "answers")
        if self.kind is not None:
            check_column(source, self.kind, ("text",), "kind")
        return questions(source, self.question, self.answers, self.kind)

    def _candidates(self) -> list[str]:
        """Distinct answers as they were given, the commonest first; equal but for case and articles
        counts as equal.

        None for a method that does not choose. Raises ConfigError at `candidates` where the source
        that they are of has none.
        """
        if self.method != "likelihood":
            return []
        if isinstance(self.candidates, tuple):
            given = list(self.candidates)
        else:
            source = (
                self.open()
                if self.candidates is None
                else open_named(self.candidates, "candidates")
            )
            try:
                asked = self._questions(source).asked
            except ConfigError as error:
                raise ConfigError("candidates", f"{error}") from None
            given = [answer for question in asked for answer in question.answers]
            check(bool(given), "candidates", f"{source.name} has no answers to choose from")
        written: dict[str, str] = {}
        for text in given:
            written.setdefault(normalised(text), text)
        counts = collections.Counter(map(normalised, given))
        return [written[a] for a, _ in counts.most_common(self.most)]

    def _choose(
        self,
        choices: list[list[int]],
        encoders: Encoders,
        records: Records,
        prompts: list[list[int]],
    ):
        """Scores float64 [n, A] of the candidates, which questions they are of int64 [n], and
        skipped images."""
        padding = encoders.tokenizer.pad_id
        length = encoders.text_length
        answers = np.full((len(choices), max(map(len, choices))), padding, np.int32)
        for row, ids in zip(answers, choices):
            row[: len(ids)] = ids
        scores = []
        index = []
        faults: collections.Counter[str] = collections.Counter()
        for at in range(0, len(records), CHUNK * encoders.batch):
            part = prompts[at : at + CHUNK * encoders.batch]
            tokens = np.full((len(part), len(choices), length), padding, np.int32)
            for row, ids in zip(tokens, part):
                row[:, : len(ids)] = ids
                row[:, len(ids) : len(ids) + answers.shape[1]] = answers
            encoded = encoders.scores(
                records.part(at, at + len(part)),
                tokens,
                np.array([len(p) for p in part], np.int32),
                column=self.image,
            )
            faults.update(encoded.skipped)
            if len(encoded.index):
                log_p = encoded.rows[..., 0].astype(np.float64)
                scores.append(log_p / encoded.rows[..., 1] if self.per_token else log_p)
                index.append(at + encoded.index)
        return (
            np.concatenate([np.zeros((0, len(choices))), *scores]),
            np.concatenate([np.zeros(0, np.int64), *index]),
            faults,
        )

    def _write(self, encoders: Encoders, records: Records, prompts: list[list[int]]):
        """Texts that are written after the questions, which questions they answer int64 [n], and
        skipped images."""
        tokens = np.full((len(prompts), encoders.text_length), encoders.tokenizer.pad_id, np.int32)
        for row, ids in zip(tokens, prompts):
            row[: len(ids)] = ids
        texts, encoded = encoders.captions(records, self.generation, tokens, column=self.image)
        return texts, encoded.index, encoded.skipped


def _of_scores(scores: np.ndarray, candidates: list[str], asked: Sequence[Question]):
    """(exact float [n], accuracy float [n], best candidates to show) of scores [n, A]."""
    exact = np.zeros(len(asked))
    vqa = np.zeros(len(asked))
    shown = []
    for i, (row, q) in enumerate(zip(scores, asked)):
        best = np.flatnonzero(row >= row.max() - TIE)
        exact[i] = np.mean([normalised(candidates[c]) == commonest(q.answers) for c in best])
        vqa[i] = np.mean([accuracy(candidates[c], q.answers) for c in best])
        first = np.argsort(-row, kind="stable")[:SHOWN]
        shown.append(
            tuple(
                Item(candidates[c], float(np.exp(row[c])), accuracy(candidates[c], q.answers) > 0)
                for c in first
            )
        )
    return exact, vqa, shown


def _of_candidates(candidates: list[str], asked: Sequence[Question]) -> dict[str, float]:
    """Figures of the candidates, whatever the model: of one at random, of the best one, and how
    many there are."""
    known = set(map(normalised, candidates))
    worth = [
        [accuracy(answer, q.answers) for answer in set(map(normalised, q.answers)) & known]
        for q in asked
    ]  # all others: 0
    return {
        "vqa_acc_chance": np.mean([sum(of) for of in worth]) / len(known),
        "vqa_acc_best_possible": np.mean([max(of, default=0.0) for of in worth]),
        "candidates": len(known),
    }


def _by_kind(vqa: np.ndarray, asked: Sequence[Question]) -> dict[str, float]:
    """Mean accuracy of each kind of question."""
    kinds = sorted({q.kind for q in asked if q.kind})
    return {
        f"vqa_acc_{kind.replace('/', '-')}": vqa[[q.kind == kind for q in asked]].mean()
        for kind in kinds
    }


class Records:
    """Records of a source in another order, and more than once."""

    def __init__(self, source: Source, index: Sequence[int]):
        self._source = source
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source.read`."""
        return self._source.read(self._index[i], columns)

    def part(self, start: int, stop: int) -> Records:
        return Records(self._source, self._index[start:stop])


class Questions(NamedTuple):
    """Questions of a source in its order, and how many of its records cannot be read."""

    asked: tuple[Question, ...]
    unreadable: int


@functools.lru_cache(maxsize=8)
def questions(source: Source, question: str, answers: str, kind: str | None) -> Questions:
    """Questions of a source, read without pictures; records that are bad or have none are left out.

    Args:
      question, answers, kind: the columns.
    """
    columns = [name for name in (question, answers, kind) if name is not None]
    records = read_all(source, lambda i: source.read(i, columns))
    out = []
    for i, record in enumerate(records):
        if record is None or not record.get(question):
            continue
        people = people_of(record, answers)
        if people:
            out.append(
                Question(i, record[question], people, (record.get(kind) or "") if kind else "")
            )
    return Questions(tuple(out), records.count(None))


def people_of(record: Record, column: str) -> tuple[str, ...]:
    """The answers of a record, one for each person; equal ones stay."""
    answers = record.get(column) or ()
    return (answers,) if isinstance(answers, str) else tuple(answers)


@functools.lru_cache(maxsize=2**16)
def normalised(answer: str) -> str:
    """What answers are compared by, after VQA's rules: no case, punctuation and articles, numbers
    as digits.

    VQA's table of misspelt contractions is left out.
    """
    kept = [_NUMBERS.get(w, w) for w in words(answer)]
    return " ".join([w for w in kept if w not in _ARTICLES] or kept)


def commonest(answers: Sequence[str]) -> str:
    """The commonest answer as `normalised`; of several the first."""
    return collections.Counter(map(normalised, answers)).most_common(1)[0][0]


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015; Goyal et al. 2017): the mean over leaving out one person of
    min(others who agree / 3, 1).

    Fewer than three others all have to agree; with one person it is whether the answer is theirs.
    """
    agree = [normalised(answer) == normalised(p) for p in people]
    if len(people) == 1:
        return float(agree[0])
    enough = min(3, len(people) - 1)
    return float(np.mean([min((sum(agree) - own) / enough, 1.0) for own in agree]))
