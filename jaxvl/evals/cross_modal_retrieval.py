"""Retrieval between any two modalities of a model, such as video and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import scipy.stats

from jaxvl.config import Count, Range, Scale, check
from jaxvl.data.fields.base import Field
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.numbers import Group
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.sources.base import Kind, Source
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import LABELS, check_column, check_texts, in_language, text_ids
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import TILE, Ranks, Score, Tree, cosines, length, rank, top_k
from jaxvl.evals.rows import caption, check_rows, picture, rows_of
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, sample
from jaxvl.evals.thumbnails import THUMBNAIL, flatten, png, shrink
from jaxvl.kernels.contrastive.scores import AttentionWeighted, Tokens

Input = Literal["image", "video", "waveform", "text"]
MODALITY = {"image": "vision", "video": "vision", "waveform": "audio", "text": "text"}
KINDS: dict[str, tuple[Kind, ...]] = {
    "image": ("image",),
    "video": ("frames",),
    "waveform": ("audio",),
    "text": ("text", "texts"),
}
GROUP = "group_id"
KS = (1, 5, 10)
SHOWN = 5  # candidates in the gallery
CONFIDENCE = 0.95


@EVALUATORS.register("cross_modal_retrieval")
@dataclasses.dataclass(frozen=True)
class CrossModalRetrieval(SourceOptions):
    """Retrieval of one thing that a record shows by another, in both directions, for each language
    on its own.

    Records of one `group` are right answers for each other. Texts that the model cannot tell apart
    (equal tokens, cut at its length) are one candidate and one query, `texts` in all. So
    `video2text_r@1` is the accuracy of zero-shot classification among the texts of the source.
    Sounds are read from their beginning. Records that lack either are left out.

    Figures: `A2B_r@K` for K = 1, 5, 10, with `A2B_r@10_low` and `_high`, the ends of Wilson's 95 %
      interval over queries,
    `A2B_r@10_chance`, and the same for B2A; `records`. With `languages` they are given for each
    (`LANGUAGE/…`), with their means and `languages_over_2x`: in how many of them A2B_r@10 and
    B2A_r@10 are both at least twice chance.

    The gallery shows pictures and middle frames, and for sounds the names of the group's classes:
    in the sounds' language, or in `language` where there are none in it.

    Attributes:
      pair: what is compared, as ("image", "waveform").
      video, waveform, text: the columns of frames, sounds and texts; `{language}` in them stands
        for the language (`speech/{language}`).
      languages: of these columns; empty: only `language`.
      language: see `languages`, and the gallery above.
      group: the column of classes, numbers or texts that are equal for right answers; None: only
        the record itself is right.
      frames: of a clip.
      stride: every how many stored frames one is taken.
      seconds: of a sound.
      parts: that a sound is cut into, each encoded on its own; the other side then weighs them by
        how well they fit it (CoLLAP, see the objective `collap`). Parts without sound do not count.
      temperature: of these weights, as in training; None: the mean of the parts.
    """

    pair: tuple[Input, Input] = ("video", "text")
    video: str = "frames"
    waveform: str = "audio"
    text: str = "text"
    languages: tuple[str, ...] = ()
    language: str = "en"
    group: str | None = None
    frames: Annotated[int, Range(1, 65_536)] = 16
    stride: Annotated[int, Range(1, 65_536)] = 1
    seconds: Annotated[float, Range(0.0, 86_400.0, above=True)] = 8.192
    parts: Count = 1
    temperature: Scale | None = 0.1

    def __post_init__(self):
        super().__post_init__()
        heard = self.parts == 1 or "waveform" in self.pair
        check(heard, "parts", f"{self.parts!r} are of a waveform, which is not in the pair")
        a, b = self.pair
        for name in self.pair:
            check(name in MODALITY, "pair", f"{name!r} is not one of {', '.join(MODALITY)}")
        check(
            MODALITY[a] != MODALITY[b],
            "pair",
            f"{list(self.pair)!r} must be of two modalities (image and video are one)",
        )
        for name in self.pair:
            in_language(self._patterns[name], "en", name)
        fits = not self.languages or any("{language}" in self._patterns[name] for name in self.pair)
        check(
            fits,
            "languages",
            f"{list(self.languages)!r}: neither {a} nor {b} names a column of a language, as "
            f"speech/{{language}}",
        )

    @property
    def figures(self) -> tuple[str, ...]:
        ends = ("r@10_low", "r@10_high")
        of_directions = [
            f"{d}_{figure}"
            for d in self._directions
            for figure in (*(f"r@{k}" for k in KS), *ends, "r@10_chance")
        ]
        own = [*of_directions, *(["texts"] if "text" in self.pair else []), "records"]
        if not self.languages:
            return tuple(own)
        means = [figure for figure in own if not figure.endswith(ends)]
        return (
            *means,
            "languages_over_2x",
            *(f"{language}/{figure}" for language in self.languages for figure in own),
        )

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        if self.group is not None:
            check_column(source, self.group, LABELS, "group")
        if "text" in self.pair:
            check_tokenizer(encoders)
        shapes = {}
        for i, language in enumerate(self.languages or (self.language,)):
            self._check_columns(source, language, f"languages[{i}]" if self.languages else None)
            field = f"languages[{i}]" if self.languages else "pair"
            shapes = check_rows(self, encoders, field, self._fields(encoders, language)).shapes
        encoders.check_outputs(shapes, self._outputs)

    def _check_columns(self, source: Source, language: str, field: str | None) -> None:
        """Raises ConfigError at `field` (None: at the option itself) where a source lacks the
        columns of a language."""
        for name in self.pair:
            column = self._column(name, language)
            place = field if field and "{language}" in self._patterns[name] else name
            check_column(source, column, KINDS[name], place)
            if name == "text":
                check_texts(source, column, place)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError where the model does not compare the two, DataError where no record
        has both."""
        by_language: dict[str, dict[str, float]] = {}
        over = 0
        gallery: list[GalleryRow] = []
        for language in self.languages or (self.language,):
            figures, gallery = self._of(encoders, language, gallery)
            over += all(
                figures[f"{d}_r@10"] >= 2 * figures[f"{d}_r@10_chance"] for d in self._directions
            )
            by_language[language] = figures
        if not self.languages:
            return EvalResult(figures, gallery)
        means = [name for name in figures if not name.endswith(("_low", "_high"))]
        metrics = {
            name: float(np.mean([of[name] for of in by_language.values()])) for name in means
        }
        metrics["languages_over_2x"] = float(over)
        for language, figures in by_language.items():
            metrics |= {f"{language}/{name}": value for name, value in figures.items()}
        return EvalResult(metrics, gallery)

    @property
    def _directions(self) -> tuple[str, str]:
        a, b = self.pair
        return f"{a}2{b}", f"{b}2{a}"

    @property
    def _outputs(self) -> tuple[str, str]:
        """The model's outputs that hold the two sides."""
        a, b = (MODALITY[name] for name in self.pair)
        return f"{a}>{b}", f"{b}>{a}"

    @property
    def _patterns(self) -> dict[str, str]:
        """Input -> its column, or a pattern of it."""
        return {
            "image": self.image,
            "video": self.video,
            "waveform": self.waveform,
            "text": self.text,
        }

    def _column(self, name: str, language: str) -> str:
        """The column of an input in a language."""
        return in_language(self._patterns[name], language, name)

    def _fields(self, encoders: Encoders, language: str) -> dict[str, Field]:
        """What is read of a record."""
        fields: dict[str, Field] = {}
        for name in self.pair:
            column = self._column(name, language)
            if name == "image":
                fields[name] = picture(column, encoders)
            elif name == "video":
                size = encoders.preprocess.image_size
                fields[name] = Frames(
                    column, size, self.frames, self.stride, random=False, fast_decode=False
                )
            elif name == "waveform":
                fields[name] = Waveform(
                    column, seconds=self.seconds, random=False, parts=self.parts
                )
            else:
                fields[name] = caption(column, encoders)
        return fields if self.group is None else fields | {GROUP: Group(self.group)}

    def _of(
        self, encoders: Encoders, language: str, gallery: list[GalleryRow]
    ) -> tuple[dict[str, float], list[GalleryRow]]:
        """The figures of one language, and the gallery, made where `gallery` is empty."""
        a, b = self.pair
        outputs = self._outputs
        shown = self.gallery and not gallery
        rows: tuple[list, list] = ([], [])
        groups: list[int] = []
        texts: list[str] = []
        thumbnails: list[np.ndarray | None] = []
        for batch, n in rows_of(self, encoders, self._fields(encoders, language)):
            embedded = encoders.outputs(
                {name: array for name, array in batch.items() if name != GROUP}, outputs
            )
            for kept, output, name in zip(rows, outputs, self.pair):
                found = embedded[output][:n]
                if name == "waveform" and self.parts > 1:
                    found = Tokens(found, batch["waveform_length"][:n] > 0)
                kept.append(found)
            groups.extend(
                batch[GROUP][:n] if self.group is not None else range(len(groups), len(groups) + n)
            )
            texts.extend(
                encoders.tokenizer.decode(batch["text"][:n]) if "text" in batch else [""] * n
            )
            thumbnails.extend(_thumbnail(batch, i, encoders) if shown else None for i in range(n))
        u, v = (jax.tree.map(lambda *a: np.concatenate(a), *kept) for kept in rows)
        ids = np.unique(groups, return_inverse=True)[1]
        every = np.arange(len(ids))
        metrics: dict[str, float] = {}
        sides = {
            name: _Side(x, ids, every, MODALITY[name] == "vision") for name, x in ((a, u), (b, v))
        }
        if "text" in self.pair:
            of_text = text_ids(texts)  # then what is right is what has the same text
            first = np.unique(of_text, return_index=True)[1]
            other = a if b == "text" else b
            sides = {
                other: sides[other]._replace(ids=of_text),
                "text": _Side(_take(sides["text"].rows, first), of_text[first], first, False),
            }
            metrics["texts"] = float(len(first))
        elif shown:
            texts = self._names(language, groups)
        for name, x, y in zip(self._directions, (sides[a], sides[b]), (sides[b], sides[a])):
            how = dict(score=self._score(x.rows), tile=max(TILE // self.parts, 1))
            ranks = rank(x.rows, y.rows, x.ids, y.ids, encoders.mesh, **how)
            metrics |= _figures(name, ranks)
            if shown:
                source, target = name.split("2")
                heading = f"{source.capitalize()} to {target}" + f", {language}" * bool(
                    self.languages
                )
                gallery = gallery + self._shown(encoders, heading, x, y, ranks, texts, thumbnails)
        return metrics | {"records": float(length(u))}, gallery

    def _score(self, queries: Tree) -> Score:
        """What is ranked by where these ask."""
        if self.parts == 1:
            return cosines
        sharpness = 0.0 if self.temperature is None else 1 / self.temperature
        score = AttentionWeighted(1.0, sharpness)
        return score if isinstance(queries, Tokens) else _Turned(score)

    def _names(self, language: str, groups: Sequence[int]) -> list[str]:
        """What records are called; sounds can be of a language (`zxx`: of none) that nothing is
        named in."""
        classes = None if self.group is None else self.open().columns[self.group].classes
        for named in (language, self.language):
            names = None if classes is None else classes.names.get(named)
            if names is not None:
                return [names[i] or "" for i in groups]
        return [""] * len(groups)

    def _shown(
        self,
        encoders: Encoders,
        heading: str,
        x: _Side,
        y: _Side,
        ranks: Ranks,
        texts: list[str],
        thumbnails: list[np.ndarray | None],
    ) -> list[GalleryRow]:
        """Queries of `x` with the best of `y`."""
        pick = sample(len(x.ids), self.gallery)
        out = []
        every = ranks.rank()

        def pictured(side: _Side, i: int) -> bytes | None:
            return png(thumbnails[side.record[i]], THUMBNAIL) if side.pictured else None

        asked = _take(x.rows, pick)
        how = dict(score=self._score(asked), tile=max(TILE // self.parts, 1))
        for q, scores, best in zip(pick, *top_k(asked, y.rows, SHOWN, encoders.mesh, **how)):
            items = tuple(
                Item(texts[y.record[c]], float(s), bool(x.ids[q] == y.ids[c]), pictured(y, c))
                for s, c in zip(scores, best)
            )
            out.append(
                GalleryRow(heading, texts[x.record[q]], pictured(x, q), items, float(every[q]))
            )
        return out


@dataclasses.dataclass(frozen=True)
class _Turned:
    """A score of candidates and queries, as one of queries and candidates."""

    score: Score

    def __call__(self, queries: Tree, candidates: Tree) -> jax.Array:
        return self.score(candidates, queries).T


def _take(tree: Tree, index: np.ndarray) -> Tree:
    return jax.tree.map(lambda a: a[index], tree)


class _Side(NamedTuple):
    """One of the two things: rows [n, E] or parts `Tokens` [n, K, E], what each is (int [n]), and
    the record that it is of (int [n])."""

    rows: Tree
    ids: np.ndarray
    record: np.ndarray
    pictured: bool


def _thumbnail(batch: dict[str, np.ndarray], i: int, encoders: Encoders) -> np.ndarray | None:
    """Row `i`'s picture or middle frame, small: uint8 [H, W, 3]; None where it has neither."""
    if "image" in batch:
        pixels = batch["image"][i]
    elif "video" in batch:
        pixels = batch["video"][i, batch["video"].shape[1] // 2]
    else:
        return None
    return shrink(flatten(pixels, encoders.preprocess.background), THUMBNAIL)


def _figures(name: str, ranks: Ranks) -> dict[str, float]:
    recall = {k: ranks.recall(k) for k in KS}
    out = {f"{name}_r@{k}": float(r.mean()) for k, r in recall.items()}
    n = len(recall[10])
    low, high = scipy.stats.binomtest(round(float(recall[10].sum())), n).proportion_ci(
        CONFIDENCE, "wilson"
    )
    return out | {
        f"{name}_r@10_low": float(low),
        f"{name}_r@10_high": float(high),
        f"{name}_r@10_chance": ranks.chance(10),
    }
