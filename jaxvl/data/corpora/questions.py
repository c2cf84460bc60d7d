"""Questions about pictures of your own: a folder with one JSONL file for each split.

`FOLDER/train.jsonl`, `FOLDER/val.jsonl`, …: a line for each question,

    {"image": "val2014/COCO_val2014_000000262148.jpg", "question": "Where is he looking?", "answers": ["down", "down", "at table"]}

`image` is a path from the folder `images`; `answers` are those of all people who were asked, one at least; `type` (text: figures
are reported for each) and `question_id` may be there too. For VQAv2, join its questions and annotations by `question_id`:
`answers = [a["answer"] for a in annotation["answers"]]`, `type = annotation["answer_type"]`.

A record is as in `data.records`, with `question`, `answers` and `type` beside. Its caption is the question and its commonest
answer in one text, so that a captioner trained on the corpus learns to answer; its label is that answer.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl import paths
from jaxvl.config import PathText, check, to_path
from jaxvl.data.corpora import CORPORA
from jaxvl.data.records import BadRecord, DataError, Record
from jaxvl.data.text_files import read_lines


@CORPORA.register("questions")
@dataclasses.dataclass(frozen=True)
class Questions:
    """See the module's text.

    Attributes:
      folder: of the JSONL files.
      images: folder that the paths of images start from; None: the same.
    """

    folder: PathText
    images: PathText | None = None

    def __post_init__(self):
        found = paths.list_folder(to_path(self.folder, "folder"), "*.jsonl")
        check(bool(found), "folder", f"{self.folder!r} has no .jsonl file")
        if self.images is not None:
            check(paths.is_folder(to_path(self.images, "images")), "images", f"no folder {self.images!r}")

    def prepare(self, log: Callable[[str], None] = print) -> QuestionCorpus:
        return QuestionCorpus(paths.as_path(self.folder), paths.as_path(self.images or self.folder))


class QuestionSource(Sequence):
    """Records of the questions of one file, whose pictures are read when asked for."""

    def __init__(self, path: paths.Path, questions: list[dict[str, Any]], images: paths.Path, answers: Mapping[str, int]):
        self.path, self.questions, self._images, self._answers = path, questions, images, answers

    def __len__(self) -> int:
        return len(self.questions)

    def question(self, i: int) -> dict[str, Any]:
        """`question`, `answers` and `type` without the picture."""
        return self.questions[i]

    def __getitem__(self, i: int) -> Record:
        """Raises BadRecord where the picture cannot be read."""
        asked = self.questions[i]
        try:
            image = paths.read_bytes(self._images / asked["image"])
        except OSError as error:
            raise BadRecord("record cannot be read", f"{error}") from None
        answer = common(asked["answers"])
        captions = {"en": [f"{asked['question']} {answer}", []]}
        return {**asked, "key": f"{self.path.stem}/{i}", "image": image, "label": self._answers[answer], "style": "", "captions": captions}


class QuestionCorpus:
    """What `store.Corpus` is, of a folder of questions. Raises DataError, with file and line, where a line is not as it should be."""

    def __init__(self, folder: paths.Path, images: paths.Path):
        self.folder, self._images = folder, images
        self._questions = {path.stem: read(path) for path in paths.list_folder(folder, "*.jsonl")}
        self._answers = sorted({common(q["answers"]) for of in self._questions.values() for q in of})
        self._places = {answer: i for i, answer in enumerate(self._answers)}

    @property
    def splits(self) -> list[str]:
        return list(self._questions)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the questions and answers; the pictures are not read for it."""
        return hashlib.sha256(json.dumps(self._questions, sort_keys=True).encode()).hexdigest()

    @functools.cache  # noqa: B019 (a corpus lives as long as the process)
    def split(self, name: str) -> QuestionSource:
        """Random access to the records of a split. Raises KeyError."""
        return QuestionSource(self.folder / f"{name}.jsonl", self._questions[name], self._images, self._places)

    def labels(self, split: str) -> np.ndarray:
        """Commonest answer of every question, int32 [n]."""
        return np.array([self._places[common(q["answers"])] for q in self._questions[split]], np.int32)

    def class_names(self, locale: str = "en") -> list[str]:
        """The answers."""
        return self._answers

    def texts(self, split: str, locales: Collection[str] | None = None) -> Iterator[str]:
        """Questions with their commonest answers."""
        for asked in self._questions[split]:
            yield f"{asked['question']} {common(asked['answers'])}"


def common(answers: Sequence[str]) -> str:
    """The commonest answer; of several the first."""
    return collections.Counter(answers).most_common(1)[0][0]


def read(path: paths.Path) -> list[dict[str, Any]]:
    """Questions of a file. Raises DataError."""
    out = []
    try:
        lines = read_lines(paths.read_bytes(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from None
        texts = isinstance(asked, dict) and all(isinstance(asked.get(k), str) and asked[k].strip() for k in ("image", "question"))
        answers = asked.get("answers") if isinstance(asked, dict) else None
        if not texts or not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
            raise DataError(f"{path}:{number}: must have 'image' and 'question' (texts) and 'answers' (a list of one text or more)")
        out.append({"type": "", **asked})
    return out
