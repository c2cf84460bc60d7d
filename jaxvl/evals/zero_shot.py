"""Zero-shot classification: which class name, put into prompts, is nearest to an image."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxvl.config import ConfigError, check, nearest
from jaxvl.data.class_sets import CLASS_SETS
from jaxvl.data.classes import ClassSet
from jaxvl.data.fields.numbers import same_text
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import LABELS, Labels, check_column, class_names, labels_of, text_ids
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import class_vectors, templates_of
from jaxvl.evals.ranking import rank, top_k
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, sample, skipped_figures
from jaxvl.evals.thumbnails import Thumbnails

KS = (1, 5)
SHOWN = 5


@EVALUATORS.register("zero_shot")
@dataclasses.dataclass(frozen=True)
class ZeroShot(SourceOptions):
    """Accuracy at 1 and 5 over the names of classes, in any of their languages.

    A class is the renormalised mean of its prompts' unit vectors. Classes of one name are one
    answer; ties count by the probability that the right class is among the first k under random
    order (`ranking`).

    Figures: `acc@1`, `acc@5`, `acc@1_chance` (of an encoder that knows nothing), `mean_class_acc@1`
      (every class
    weighs the same), `classes`, `images`, `skipped/CAUSE`. The gallery shows a fixed random sample,
    then the mistakes that the model was surest of.

    Attributes:
      label: the column that says what a picture shows: classes that the source has names of, texts,
        or numbers of a class set's classes.
      language: of the names.
      classes: the candidates: those that occur in the source ("split"), all that it has names of
        ("all"), a list of names, or a class set (`dict(name="imagenet")`), which says what the
        label's numbers mean. Images of other classes are left out and counted.
      templates: a named set of `prompts.TEMPLATES`, or a list of texts with one `{}` each; None:
        those that the classes come with, else "plain".
    """

    label: str = "class_label"
    language: str = "en"
    classes: str | tuple[str, ...] | Annotated[Any, CLASS_SETS] = "split"
    templates: str | tuple[str, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.templates is not None:
            templates_of(self.templates)
        known = not isinstance(self.classes, str) or self.classes in ("split", "all")
        valid = "'split', 'all', a list of class names, or a class set, as dict(name='imagenet')"
        check(known and self.classes != (), "classes", f"{self.classes!r} must be {valid}")

    @property
    def figures(self) -> tuple[str, ...]:
        shares = [f"acc@{k}" for k in KS]
        return (*shares, "acc@1_chance", "mean_class_acc@1", "classes", "images", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        labels = self._labels(source)
        candidates = self._candidates(source, labels)
        found = np.isin(labels.values, candidates).any()
        field = "label" if self.classes == "split" else "classes"
        check(
            found, field, f"{source.name} has no image of a class with a name in {self.language!r}"
        )

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for class names that there are not, DataError where no image is
        left."""
        source, encoded = self.encode(encoders)
        labels = self._labels(source)
        names = class_names(labels.classes, self.language, repr(self.label))
        candidates = self._candidates(source, labels)
        has_class = np.isin(labels.values[encoded.index], candidates)
        if not has_class.any():
            raise DataError(
                f"{source.name} has no image of the {len(candidates)} candidate classes in "
                f"{self.language!r}"
            )
        images = encoded.rows[has_class]
        index = encoded.index[has_class]

        answer = text_ids([names[c] for c in candidates])  # classes of one name are one answer
        answers = [names[candidates[i]] for i in np.unique(answer, return_index=True)[1]]
        rows = class_vectors(encoders.texts, answers, self._templates(labels))
        truth = answer[np.searchsorted(candidates, labels.values[index])]
        ranks = rank(images, rows, truth, np.arange(len(answers)), encoders.mesh)
        per_class = np.bincount(truth, ranks.recall(1)) / np.maximum(np.bincount(truth), 1)
        metrics = {f"acc@{k}": float(ranks.recall(k).mean()) for k in KS}
        metrics |= {
            "acc@1_chance": ranks.chance(1),
            "mean_class_acc@1": float(per_class[np.unique(truth)].mean()),
        }
        metrics |= {"classes": float(len(answers)), "images": float(len(images))}
        metrics |= skipped_figures(
            encoded.skipped, {"class is not a candidate": int((~has_class).sum())}
        )
        thumbnails = Thumbnails(source, encoders.preprocess, self.image)
        gallery = (
            self._rows(images, rows, truth, answers, index, ranks, thumbnails, encoders.mesh)
            if self.gallery
            else []
        )
        return EvalResult(metrics, gallery)

    def _rows(
        self, images, rows, truth, answers, index, ranks, thumbnail, mesh
    ) -> list[GalleryRow]:
        """A sample of the images, then the surest mistakes."""
        scores, found = top_k(images, rows, SHOWN, mesh)
        example = dict(
            zip(truth[::-1].tolist(), index[::-1].tolist())
        )  # the first image of each class
        sizes = collections.Counter(truth.tolist())
        confusions = collections.Counter(zip(truth.tolist(), found[:, 0].tolist()))

        def row(group: str, q: int) -> GalleryRow:
            right = int(truth[q])
            first = int(found[q, 0])
            best = zip(scores[q].tolist(), found[q].tolist())
            items = tuple(
                Item(answers[c], s, c == right, thumbnail(example[c]) if c in example else None)
                for s, c in best
            )
            note = ""
            if sizes[right] > 1 and first != right:
                note = (
                    f"{confusions[right, first]} of the {sizes[right]} images of this class are "
                    f"taken for “{answers[first]}”"
                )
            return GalleryRow(
                group, answers[right], thumbnail(index[q]), items, float(ranks.rank()[q]), note
            )

        wrong = np.flatnonzero(found[:, 0] != truth)
        margin = scores[wrong, 0] - np.einsum("nd,nd->n", images[wrong], rows[truth[wrong]])
        surest: dict[tuple[int, int], int] = {}  # one image for each pair of classes
        for q in wrong[np.argsort(-margin, kind="stable")]:
            surest.setdefault((int(truth[q]), int(found[q, 0])), int(q))
        shown = [row("Image to class", int(q)) for q in sample(len(images), self.gallery)]
        return shown + [row("Surest mistakes", q) for q in list(surest.values())[: self.gallery]]

    def _labels(self, source: Source) -> Labels:
        """Class of every record, and what classes there are: those of the class set, else the label
        column's own.

        Raises ConfigError at `label` where nothing names them.
        """
        column = check_column(source, self.label, LABELS, "label")
        given = self._class_set()
        named = column.kind == "text" or column.classes is not None or given is not None
        problem = (
            f"{self.label!r} of {source.name} holds numbers, and the source has no names of the "
            f"classes; name a class set in classes"
        )
        check(named, "label", problem)
        return labels_of(source, self.label, self.language, given)

    def _class_set(self) -> ClassSet | None:
        """The class set that `classes` names; None where it names none."""
        if isinstance(self.classes, (str, tuple)):
            return None
        try:
            return self.classes.load()
        except ConfigError as error:
            raise error.under("classes") from None

    def _templates(self, labels: Labels) -> Sequence[str]:
        """What prompts are made with."""
        if self.templates is not None:
            return templates_of(self.templates)
        return labels.classes.templates or templates_of("plain")

    def _candidates(self, source: Source, labels: Labels) -> np.ndarray:
        """Numbers of the candidate classes, ascending; classes without a name in the language are
        none."""
        names = class_names(labels.classes, self.language, f"{self.label!r} of {source.name}")
        named = np.array([bool(n) for n in names])
        if self.classes == "split":
            chosen = np.unique(labels.values[labels.values >= 0])
        elif isinstance(self.classes, tuple):
            chosen = self._by_name(source, names)
        else:
            chosen = np.arange(len(names))
        return chosen[named[chosen]]

    def _by_name(self, source: Source, names: Sequence[str | None]) -> np.ndarray:
        """Numbers of the classes that are listed by name, ascending."""
        by_name: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            by_name.setdefault(same_text(name or ""), []).append(number)
        known = [name for name in names if name]
        for i, name in enumerate(self.classes):
            hint = nearest(name, known)
            problem = (
                f"{name!r} is not a class of {self.label!r} of {source.name} in "
                f"{self.language!r}{hint}"
            )
            check(same_text(name) in by_name, f"classes[{i}]", problem)
        return np.unique([number for name in self.classes for number in by_name[same_text(name)]])
