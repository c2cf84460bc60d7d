"""Questions about pictures of your own: a folder with one JSONL file for each split.

`FOLDER/train.jsonl`, `FOLDER/val.jsonl`, …: a line for each question,

    {"image": "val2014/COCO_val2014_000000262148.jpg", "question": "Where is he looking?",
      "answers": ["down", "down", "at table"]}

`image` is a path from the folder `images`; `answers` are those of all people who were asked, one at
least; `type` (text: figures are reported for each) and `question_id` may be there too. For VQAv2,
join its questions and annotations by `question_id`: `answers = [a["answer"] for a in
annotation["answers"]]`, `type = annotation["answer_type"]`.

Columns: `image`, `question`, `answers`, `type`; `text`, the question and its commonest answer in
  one text, so that a captioner trained
on it learns to answer; and `class_label`, that answer's place among the commonest answers of all
files.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection, Sequence

import numpy as np

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import PathText, check, nearest, to_path
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Log, Record, Source
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.text_files import read_lines


@SOURCES.register("questions")
@dataclasses.dataclass(frozen=True)
class Questions:
    """See the module's text.

    Attributes:
      folder: of the JSONL files.
      split: name of the file, without its suffix.
      images: folder that the paths of images start from; None: the same.
    """

    folder: PathText
    split: str
    images: PathText | None = None

    def __post_init__(self):
        found = [path.stem for path in paths.list_folder(to_path(self.folder, "folder"), "*.jsonl")]
        check(bool(found), "folder", f"{self.folder!r} has no .jsonl file")
        problem = f"{self.split!r} is none{nearest(self.split, found)} (splits: {', '.join(found)})"
        check(self.split in found, "split", problem)
        if self.images is not None:
            check(
                paths.is_folder(to_path(self.images, "images")),
                "images",
                f"no folder {self.images!r}",
            )

    def open(self, log: Log = print) -> QuestionSource:
        """See `base.SourceConfig`. Raises DataError, with file and line, where a line is not as it
        should be."""
        folder = paths.as_path(self.folder)
        files = {path.stem: read(path) for path in paths.list_folder(folder, "*.jsonl")}
        answers = sorted({common(asked["answers"]) for of in files.values() for asked in of})
        images = MediaFolder(self.images or self.folder)
        return QuestionSource(
            str(folder / f"{self.split}.jsonl"), files[self.split], images, answers
        )


class QuestionSource(Source):
    """Records of the questions of one file, whose pictures are read when asked for.

    Args:
      name: of the file.
      questions: its lines.
      images: folder that the paths of images start from, and may not leave.
      answers: the classes.
    """

    def __init__(
        self,
        name: str,
        questions: list[dict[str, Json]],
        images: MediaFolder,
        answers: Sequence[str],
    ):
        self.name = name
        self.questions = questions
        self._images = images
        self._places = {answer: i for i, answer in enumerate(answers)}
        self.columns = {
            "image": Column("image"),
            "question": Column("text"),
            "answers": Column("texts"),
            "type": Column("text"),
            "text": Column("text"),
            "class_label": Column("class", classes=ClassSet({"en": tuple(answers)})),
        }

    def __len__(self) -> int:
        return len(self.questions)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the questions and answers; the pictures are not read for it."""
        return hashlib.sha256(
            json.dumps([self.questions, *self._places], sort_keys=True).encode()
        ).hexdigest()

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        """See `base.Source`. Raises BadRecord where the picture cannot be read."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        asked = self.questions[i]
        answer = common(asked["answers"])
        record = {
            "question": asked["question"],
            "answers": list(asked["answers"]),
            "type": asked["type"],
            "text": f"{asked['question']} {answer}",
            "class_label": self._places[answer],
        }
        if columns is None or "image" in columns:
            record["image"] = self._images.read(
                asked["image"], "image", f"{self.name}, question {i}"
            )
        return (
            record
            if columns is None
            else {name: record[name] for name in columns if name in record}
        )

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        if name != "class_label":
            return None
        return np.array(
            [self._places[common(asked["answers"])] for asked in self.questions], np.int64
        )


def common(answers: Sequence[str]) -> str:
    """The commonest answer; of several the first."""
    return collections.Counter(answers).most_common(1)[0][0]


def read(path: paths.Path) -> list[dict[str, Json]]:
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
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from None
        texts = isinstance(asked, dict) and all(
            isinstance(asked.get(k), str) and asked[k].strip() for k in ("image", "question")
        )
        answers = asked.get("answers") if isinstance(asked, dict) else None
        if (
            not texts
            or not isinstance(answers, list)
            or not answers
            or not all(isinstance(a, str) for a in answers)
        ):
            raise DataError(
                f"{path}:{number}: must have 'image' and 'question' (texts) and 'answers' (a "
                f"list of one text or more)"
            )
        out.append({"type": "", **asked})
    return out
