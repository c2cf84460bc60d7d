"""Figures of one benchmark: its pictures and texts are encoded on the whole mesh, and ranked there.

Figures have CLIP_benchmark's names and definitions. Of equal scores it takes whichever comes first,
which lets an encoder that gives every pair one score win wherever the right answer stands first.
`FIGURE_random_ties` is the same under random order of ties (`ranking`); the two differ only where
scores are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxvl.data.records import DataError, causes
from jaxvl.evals.benchmarks.base import Benchmark
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.evals.metrics.classification import (
    f1_macro,
    hits,
    mean_average_precision,
    mean_per_class_recall,
    worst_group,
)
from jaxvl.evals.metrics.pairs import PairScores, best_of, chance, jaccard, pair_scores
from jaxvl.evals.metrics.retrieval import any_among
from jaxvl.evals.prompts import TEMPLATES
from jaxvl.evals.ranking import rank, top_k
from jaxvl.evals.source_options import too_many

KS = (1, 5, 10)
ClassVectors = Callable[
    [Sequence[str], Sequence[str]], np.ndarray
]  # names, templates -> float32 [C, D]
_OTHER_REGION = 5  # FMoW's region "Other", which its authors leave out


@dataclasses.dataclass(frozen=True)
class Score:
    """Figures of a benchmark (shares in 0..1; None: not defined), images that count, and those that
    do not, by cause."""

    metrics: dict[str, float | None]
    images: int
    skipped: dict[str, int]


def prompts_of(
    benchmark: Benchmark, templates: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and templates: the given ones, else the set's own, else the 80 of ImageNet, as
    CLIP_benchmark has it."""
    classes = benchmark.classes
    names = classes.names.get(benchmark.language) or next(iter(classes.names.values()))
    return names, tuple(templates or classes.templates or TEMPLATES["imagenet80"])


def score(
    benchmark: Benchmark,
    encoders: Encoders,
    class_vectors: ClassVectors,
    templates: Sequence[str] | None = None,
) -> Score:
    """Every process must make the call; each gets all figures.

    Args:
      class_vectors: as `ClassEmbeddings`.
      templates: instead of those of the set.

    Raises:
      DataError: nothing is left to measure, or too little: figures of a part of a benchmark are
        none of the benchmark.
      EvaluatorError: an error that is no bad record.
    """
    memo = None if benchmark.pictures is None else ("pictures", benchmark.pictures)
    encoded = encoders.images(benchmark.source, column=benchmark.columns["image"], memo=memo)
    if not len(encoded.index) and len(benchmark.source):
        raise DataError(
            f"none of {len(benchmark.source)} pictures can be encoded ({causes(encoded.skipped)})"
        )
    if too_many(encoded.skipped, len(benchmark.source)):
        bad = (
            f"{sum(encoded.skipped.values())} of {len(benchmark.source)} pictures cannot be used "
            f"({causes(encoded.skipped)})"
        )
        raise DataError(
            f"{benchmark.source.name}: {bad}, which leaves a part of the set; must be at most 1 %"
        )
    if benchmark.task in ("classification", "multilabel"):
        rows = class_vectors(*prompts_of(benchmark, templates))
        measure = _classification if benchmark.task == "classification" else _multilabel
        return measure(benchmark, encoded, rows, encoders)
    measure = {"retrieval": _retrieval, "pairs": _pairs, "candidates": _candidates}[benchmark.task]
    return measure(benchmark, encoded, encoders)


def _classification(
    benchmark: Benchmark, encoded: EncodedImages, rows: np.ndarray, encoders: Encoders
) -> Score:
    labels = benchmark.source.column(benchmark.columns["label"])[encoded.index]
    has_label = np.array([label is not None for label in labels], bool)
    if not has_label.any():
        raise DataError("no picture that can be encoded has a label")
    images = encoded.rows[has_label]
    labels = labels[has_label].astype(np.int64)
    _, found = top_k(images, rows, max(KS[:2]), encoders.mesh)
    ranks = rank(images, rows, labels, np.arange(len(rows)), encoders.mesh)
    metrics: dict[str, float | None] = {
        "acc1": float(hits(found, labels, 1).mean()),
        "acc5": float(hits(found, labels, 5).mean()) if len(rows) >= 5 else None,
        "mean_per_class_recall": mean_per_class_recall(found[:, 0], labels),
        "acc1_random_ties": float(ranks.recall(1).mean()),
        "acc1_chance": ranks.chance(1),
    }
    if benchmark.figures is not None:
        metrics[benchmark.figures] = _extra(benchmark, encoded.index[has_label], found, labels)
    return Score(
        metrics, len(images), _with(encoded.skipped, benchmark.no_label, int((~has_label).sum()))
    )


def _extra(benchmark: Benchmark, index: np.ndarray, found: np.ndarray, labels: np.ndarray) -> float:
    """DataComp's further figures; the first number of a record's metadata is its region or
    income."""
    if benchmark.figures == "F1-macro_all":
        return f1_macro(found[:, 0], labels)
    metadata = benchmark.source.column(benchmark.columns["metadata"])[index]
    if any(value is None or np.ndim(value) != 1 or not np.size(value) for value in metadata):
        raise DataError(
            f"{benchmark.figures} needs the metadata of every record (a member .npy), which "
            f"some lack"
        )
    groups = np.array([value[0] for value in metadata]).astype(np.int64)
    if benchmark.figures == "acc_worst_region":
        return worst_group(hits(found, labels, 1), groups, (_OTHER_REGION,))
    k = 5 if benchmark.figures == "acc_top5_wg" else 1
    return worst_group(hits(found, labels, k), groups)


def _multilabel(
    benchmark: Benchmark, encoded: EncodedImages, rows: np.ndarray, encoders: Encoders
) -> Score:
    vectors = benchmark.source.column(benchmark.columns["labels"])[encoded.index]
    has_labels = np.array([vector is not None for vector in vectors], bool)
    if not has_labels.any():
        raise DataError("no picture that can be encoded has labels")
    targets = np.stack(list(vectors[has_labels])) != 0
    scores = encoded.rows[has_labels] @ rows.T
    metrics = {
        "mean_average_precision": mean_average_precision(
            np.nan_to_num(scores, nan=-np.inf), targets
        )
    }
    return Score(
        metrics,
        int(has_labels.sum()),
        _with(encoded.skipped, "no labels", int((~has_labels).sum())),
    )


def _retrieval(benchmark: Benchmark, encoded: EncodedImages, encoders: Encoders) -> Score:
    captions = benchmark.source.column(benchmark.columns["captions"])[encoded.index]
    has_caption = np.array([bool(of) for of in captions], bool)
    if not has_caption.any():
        raise DataError("no picture that can be encoded has a caption")
    images = encoded.rows[has_caption]
    captions = captions[has_caption]
    owner = np.repeat(np.arange(len(images)), [len(of) for of in captions])
    texts = encoders.texts([text for of in captions for text in of])
    own = np.arange(len(images))
    _, best_images = top_k(texts, images, max(KS), encoders.mesh)
    _, best_texts = top_k(images, texts, max(KS), encoders.mesh)
    t2i = rank(texts, images, owner, own, encoders.mesh)
    i2t = rank(images, texts, own, owner, encoders.mesh)
    metrics = {}
    for k in KS:
        of_image = float(any_among(best_images, own, owner, k).mean())
        of_text = float(any_among(best_texts, owner, own, k).mean())
        metrics |= {f"image_retrieval_recall@{k}": of_image, f"text_retrieval_recall@{k}": of_text}
        metrics[f"mean_recall@{k}"] = (of_image + of_text) / 2
        metrics[f"image_retrieval_recall@{k}_random_ties"] = float(t2i.recall(k).mean())
        metrics[f"text_retrieval_recall@{k}_random_ties"] = float(i2t.recall(k).mean())
    metrics["mean_recall@1_chance"] = (t2i.chance(1) + i2t.chance(1)) / 2
    return Score(
        metrics, len(images), _with(encoded.skipped, "no caption", int((~has_caption).sum()))
    )


def _pairs(benchmark: Benchmark, encoded: EncodedImages, encoders: Encoders) -> Score:
    captions = benchmark.source.column(benchmark.columns["captions"])
    groups = np.arange(len(captions))
    if "group" in benchmark.columns:
        groups = benchmark.source.column(benchmark.columns["group"]).astype(np.int64)
    members: dict[int, list[int]] = {}
    for record, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(record)
    row_of = {record: row for row, record in enumerate(encoded.index.tolist())}
    whole = [
        records for records in members.values() if all(r in row_of and captions[r] for r in records)
    ]
    if not whole:
        raise DataError("no instance has all of its pictures and texts")
    texts = encoders.texts(
        [text for records in whole for record in records for text in captions[record]]
    )
    shapes: dict[tuple[int, int], list[tuple[int, list[int], list[int]]]] = {}
    place = 0
    for number, records in enumerate(whole):
        count = sum(len(captions[record]) for record in records)
        one = (number, [row_of[record] for record in records], list(range(place, place + count)))
        shapes.setdefault((len(records), count), []).append(one)
        place += count
    scores = _each_shape(shapes, encoded.rows, texts, len(whole))
    metrics = {
        "image_acc": float(scores.image.mean()),
        "text_acc": float(scores.text.mean()),
        "acc": float(scores.both.mean()),
        "image_acc_strict": float(scores.image_strict.mean()),
        "text_acc_strict": float(scores.text_strict.mean()),
    }
    if len(shapes) == 1:
        expected = chance(*next(iter(shapes)))
        names = {"image": "image_acc", "text": "text_acc", "both": "acc"}
        metrics |= {f"{names[key]}_chance": value for key, value in expected.items()}
    if "kind" in benchmark.columns:
        kinds = benchmark.source.column(benchmark.columns["kind"])[
            [records[0] for records in whole]
        ]
        by_kind = {kind: float(scores.image[kinds == kind].mean()) for kind in sorted(set(kinds))}
        metrics["image_acc_mean_of_kinds"] = float(np.mean(list(by_kind.values())))
        metrics |= {f"image_acc/{kind}": value for kind, value in by_kind.items()}
        metrics |= (
            {"image_acc_mean_of_kinds_chance": metrics["image_acc_chance"]}
            if "image_acc_chance" in metrics
            else {}
        )
    skipped = _with(encoded.skipped, "instance is not whole", len(members) - len(whole))
    return Score(metrics, sum(len(records) for records in whole), skipped)


def _each_shape(shapes: Mapping, images: np.ndarray, texts: np.ndarray, n: int) -> PairScores:
    """`pair_scores` of n instances, those with as many images and texts together."""
    out = {field.name: np.zeros(n, bool) for field in dataclasses.fields(PairScores)}
    for instances in shapes.values():
        numbers = [number for number, _, _ in instances]
        image_rows = images[np.array([rows for _, rows, _ in instances])]
        text_rows = texts[np.array([rows for _, _, rows in instances])]
        scores = pair_scores(image_rows, text_rows)
        for name, values in out.items():
            values[numbers] = getattr(scores, name)
    return PairScores(**out)


def _candidates(benchmark: Benchmark, encoded: EncodedImages, encoders: Encoders) -> Score:
    table = benchmark.candidates
    rows, usable = _side_rows(benchmark, encoded, encoders)
    every = benchmark.figures == "jaccard"
    first: list[float] = []
    tied: list[float] = []
    overlap: list[float] = []
    sizes: list[int] = []
    guessed: list[float] = []
    for query, candidates, right in zip(table.queries, table.candidates, table.right):
        kept = usable[candidates]
        needed = kept if every else kept[right]
        if not usable[query] or not needed.all() or not len(needed):
            continue
        scores = np.nan_to_num(rows[candidates[kept]] @ rows[query], nan=-np.inf)
        good = right[kept]
        best = scores.max()
        first.append(float(good[int(scores.argmax())] and np.isfinite(best)))
        tied.append(float(good[scores == best].mean() if np.isfinite(best) else 0.0))
        overlap.append(jaccard(best_of(scores, int(good.sum())), good))
        sizes.append(len(candidates))
        guessed.append(float(good.mean()))
    if not first:
        raise DataError("no query has all of its pictures")
    metrics: dict[str, float | None] = {
        "acc1": float(np.mean(first)),
        "acc1_random_ties": float(np.mean(tied)),
    }
    metrics["acc1_chance"] = float(np.mean(guessed))
    if every:
        metrics = _by_size(np.array(overlap), np.array(sizes))
    skipped = _with(encoded.skipped, "query is not whole", len(table.queries) - len(first))
    return Score(metrics, len(first), skipped)


def _by_size(values: np.ndarray, sizes: np.ndarray) -> dict[str, float | None]:
    """WinoGAViL's figures; None where there is no instance of that size."""
    parts = {
        "5-6": sizes <= 6,
        "10-12": sizes >= 10,
        **{str(n): sizes == n for n in (5, 6, 10, 12)},
    }
    metrics: dict[str, float | None] = {"avg_jaccard_score": float(values.mean())}
    for name, part in parts.items():
        metrics[f"jaccard_score_{name}"] = float(values[part].mean()) if part.any() else None
    return metrics


def _side_rows(
    benchmark: Benchmark, encoded: EncodedImages, encoders: Encoders
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows float32 [sides, D] of what queries and candidates consist of, and which of them
    could be encoded, bool [sides]."""
    sides = benchmark.candidates.sides
    texts = encoders.texts([side.text for side in sides if side.text is not None])
    width = texts.shape[1] if len(texts) else encoded.rows.shape[1]
    total = np.zeros((len(sides), width), np.float32)
    usable = np.ones(len(sides), bool)
    row_of = {record: row for row, record in enumerate(encoded.index.tolist())}
    next_text = 0
    for number, side in enumerate(sides):
        if side.text is not None:
            total[number] += texts[next_text]
            next_text += 1
        if side.image is not None:
            usable[number] = side.image in row_of
            if usable[number]:
                total[number] += encoded.rows[row_of[side.image]]
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.where(norm == 0, 1.0, norm), usable


def _with(skipped: Mapping[str, int], cause: str, n: int) -> dict[str, int]:
    return {**skipped, **({cause: n} if n else {})}
