"""Zero-shot classification: which class name, put into prompts, is nearest to an image."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from jaxvl.config import check, nearest
from jaxvl.data.corpora.prepared import prepared
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import class_vectors, templates_of
from jaxvl.evals.ranking import rank, top_k
from jaxvl.evals.split import (
    SplitOptions,
    Thumbnails,
    check_tokenizer,
    class_names,
    same_text,
    sample,
    skipped_figures,
    text_ids,
)

KS = (1, 5)
SHOWN = 5


@EVALUATORS.register("zero_shot")
@dataclasses.dataclass(frozen=True)
class ZeroShot(SplitOptions):
    """Accuracy at 1 and 5 over the class names of a corpus, in any of its languages.

    A class is the renormalised mean of its prompts' unit vectors. Classes of one name are one answer; ties count by
    the probability that the right class is among the first k under random order (`ranking`).

    Figures: `acc@1`, `acc@5`, `acc@1_chance` (of an encoder that knows nothing), `mean_class_acc@1` (every class
    weighs the same), `classes`, `images`, `skipped/CAUSE`. The gallery shows a fixed random sample, then the
    mistakes that the model was surest of.

    Attributes:
      templates: a named set of `prompts.TEMPLATES`, or a list of texts with one `{}` each.
      classes: the candidates: those that occur in the split, all of the corpus, or a list of names in `locale`. Images
        of other classes are left out and counted.
    """

    templates: str | tuple[str, ...] = "plain"
    classes: str | tuple[str, ...] = "split"

    def __post_init__(self):
        super().__post_init__()
        templates_of(self.templates)
        known = not isinstance(self.classes, str) or self.classes in ("split", "all")
        check(known and len(self.classes) > 0, "classes", f"{self.classes!r} must be 'split', 'all' or a list of class names")

    @property
    def figures(self) -> tuple[str, ...]:
        shares = [f"acc@{k}" for k in KS]
        return (*shares, "acc@1_chance", "mean_class_acc@1", "classes", "images", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        encoders.check_embeds()
        check_tokenizer(encoders)
        labels = np.asarray(prepared(self.corpus).labels(self.split))
        names = class_names(self.corpus, self.locale)
        check(any(names), "locale", f"{self.locale!r}: no class of the corpus has a name in it")
        candidates = self._candidates(names, labels)
        found = np.isin(labels, candidates).any()
        field = "locale" if self.classes == "split" else "classes"
        check(found, field, f"{getattr(self, field)!r}: split {self.split!r} has no image of a class with a name in {self.locale!r}")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for class names that the corpus does not have, DataError where no image is left."""
        source, encoded = self.encode(encoders)
        labels = np.asarray(prepared(self.corpus).labels(self.split))
        names = class_names(self.corpus, self.locale)
        candidates = self._candidates(names, labels)
        has_class = np.isin(labels[encoded.index], candidates)
        if not has_class.any():
            raise DataError(f"split {self.split!r} has no image of the {len(candidates)} candidate classes in locale {self.locale!r}")
        images, index = encoded.rows[has_class], encoded.index[has_class]

        answer = text_ids([names[c] for c in candidates])  # classes of one name are one answer
        answers = [names[candidates[i]] for i in np.unique(answer, return_index=True)[1]]
        rows = class_vectors(encoders.texts, answers, templates_of(self.templates))
        truth = answer[np.searchsorted(candidates, labels[index])]
        ranks = rank(images, rows, truth, np.arange(len(answers)), encoders.mesh)
        per_class = np.bincount(truth, ranks.recall(1)) / np.maximum(np.bincount(truth), 1)
        metrics = {f"acc@{k}": float(ranks.recall(k).mean()) for k in KS}
        metrics |= {"acc@1_chance": ranks.chance(1), "mean_class_acc@1": float(per_class[np.unique(truth)].mean())}
        metrics |= {"classes": float(len(answers)), "images": float(len(images))}
        metrics |= skipped_figures(encoded.skipped, {"class is not a candidate": int((~has_class).sum())})
        thumbnails = Thumbnails(source, encoders.preprocess)
        gallery = self._rows(images, rows, truth, answers, index, ranks, thumbnails, encoders.mesh) if self.gallery else []
        return EvalResult(metrics, gallery)

    def _rows(self, images, rows, truth, answers, index, ranks, thumbnail, mesh) -> list[GalleryRow]:
        """A sample of the images, then the surest mistakes."""
        scores, found = top_k(images, rows, SHOWN, mesh)
        example = dict(zip(truth[::-1].tolist(), index[::-1].tolist()))  # the first image of each class
        sizes, confusions = collections.Counter(truth.tolist()), collections.Counter(zip(truth.tolist(), found[:, 0].tolist()))

        def row(group: str, q: int) -> GalleryRow:
            right, first = int(truth[q]), int(found[q, 0])
            best = zip(scores[q].tolist(), found[q].tolist())
            items = tuple(Item(answers[c], s, c == right, thumbnail(example[c]) if c in example else None) for s, c in best)
            note = ""
            if sizes[right] > 1 and first != right:
                note = f"{confusions[right, first]} of the {sizes[right]} images of this class are taken for “{answers[first]}”"
            return GalleryRow(group, answers[right], thumbnail(index[q]), items, float(ranks.rank()[q]), note)

        wrong = np.flatnonzero(found[:, 0] != truth)
        margin = scores[wrong, 0] - np.einsum("nd,nd->n", images[wrong], rows[truth[wrong]])
        surest: dict[tuple[int, int], int] = {}  # one image for each pair of classes
        for q in wrong[np.argsort(-margin, kind="stable")]:
            surest.setdefault((int(truth[q]), int(found[q, 0])), int(q))
        shown = [row("Image to class", int(q)) for q in sample(len(images), self.gallery)]
        return shown + [row("Surest mistakes", q) for q in list(surest.values())[: self.gallery]]

    def _candidates(self, names: list[str | None], labels: np.ndarray) -> np.ndarray:
        """Labels of the candidate classes, ascending; classes without a name in the locale are none."""
        named = np.array([bool(n) for n in names])
        if self.classes == "split":
            chosen = np.unique(labels)
        elif self.classes == "all":
            chosen = np.arange(len(names))
        else:
            by_name: dict[str, list[int]] = {}
            for label, name in enumerate(names):
                by_name.setdefault(same_text(name or ""), []).append(label)
            for i, name in enumerate(self.classes):
                known = [n for n in names if n]
                problem = f"{name!r} is not a class of the corpus in {self.locale!r}{nearest(name, known)}"
                check(same_text(name) in by_name, f"classes[{i}]", problem)
            chosen = np.unique([label for name in self.classes for label in by_name[same_text(name)]])
        return chosen[named[chosen]]
