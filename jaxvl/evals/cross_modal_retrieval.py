"""Retrieval between any two modalities of a model: video and text, pictures and speech, speech and text."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.stats

from jaxvl.config import check
from jaxvl.data.corpora.prepared import prepared
from jaxvl.data.modalities import AudioConfig, VideoConfig
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import Ranks, rank, top_k
from jaxvl.evals.split import (
    THUMBNAIL,
    SplitOptions,
    check_captions,
    check_rows,
    check_tokenizer,
    flatten,
    png,
    rows_of,
    sample,
    shrink,
    text_ids,
)

Input = Literal["image", "video", "waveform", "text"]
MODALITY = {"image": "vision", "video": "vision", "waveform": "audio", "text": "text"}
KS = (1, 5, 10)
SHOWN = 5  # candidates in the gallery
CONFIDENCE = 0.95


@EVALUATORS.register("modalities")
@dataclasses.dataclass(frozen=True)
class ModalityRetrieval(SplitOptions):
    """Retrieval of one thing that a record shows by another, in both directions, for each language on its own.

    Records of one class are right answers for each other. Texts that the model cannot tell apart (equal tokens, cut at its length) are one
    candidate and one query, `texts` in all, so that `video2text_r@1` is
    the accuracy of zero-shot classification among the names of a split. Sounds are the record's first clip in the language, from its
    beginning; with `waveform` and `text` the text is the name in the language of the clip. Records that lack either are left out.

    Figures, for each language (`LOCALE/…`, and their means, where `locales` are given): `A2B_r@K` for K = 1, 5, 10, with `A2B_r@10_low` and `_high`, the ends
    of Wilson's 95 % interval over queries, `A2B_r@10_chance`, and the same for B2A; `records`. `languages_over_2x`: in how many of them
    A2B_r@10 and B2A_r@10 are both at least twice chance.

    The gallery shows pictures and middle frames, and for sounds names: in the sounds' language, or in `locale` where it has none.

    Attributes:
      pair: what is compared, as ("image", "waveform").
      locales: of clips and texts; empty: only `locale`.
      audio: which clips; its `locales` are those above.
      video: which frames.
    """

    pair: tuple[Input, Input] = ("video", "text")
    locales: tuple[str, ...] = ()
    audio: AudioConfig = AudioConfig(random=False)
    video: VideoConfig = VideoConfig(random=False)

    def __post_init__(self):
        super().__post_init__()
        a, b = self.pair
        for name in self.pair:
            check(name in MODALITY, "pair", f"{name!r} is not one of {', '.join(MODALITY)}")
        check(MODALITY[a] != MODALITY[b], "pair", f"{list(self.pair)!r} must be of two modalities (image and video are one)")

    @property
    def figures(self) -> tuple[str, ...]:
        ends = ("r@10_low", "r@10_high")
        of_directions = [f"{d}_{figure}" for d in self._directions for figure in (*(f"r@{k}" for k in KS), *ends, "r@10_chance")]
        own = [*of_directions, *(["texts"] if "text" in self.pair else []), "records"]
        if not self.locales:
            return tuple(own)
        means = [figure for figure in own if not figure.endswith(ends)]
        return (*means, "languages_over_2x", *(f"{locale}/{figure}" for locale in self.locales for figure in own))

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        read = None
        for i, locale in enumerate(self.locales or (self.locale,)):
            field = f"locales[{i}]" if self.locales else "pair"
            options, asked = self._asked(locale)
            read = check_rows(options, encoders, field, **asked)
            if "text" in self.pair and not read.audio.paired:
                check_tokenizer(encoders)
                check_captions(self.corpus, self.split, locale, "name", field if self.locales else "locale")
        encoders.check_outputs(read.shapes, self._outputs)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError where the model does not compare the two, DataError where no record has both."""
        by_locale, over, gallery = {}, 0, []
        for locale in self.locales or (self.locale,):
            figures, gallery = self._of(encoders, locale, gallery)
            over += all(figures[f"{d}_r@10"] >= 2 * figures[f"{d}_r@10_chance"] for d in self._directions)
            by_locale[locale] = figures
        if not self.locales:
            return EvalResult(by_locale[self.locale], gallery)
        metrics = {k: float(np.mean([f[k] for f in by_locale.values()])) for k in figures if not k.endswith(("_low", "_high"))}
        metrics |= {"languages_over_2x": float(over)} | {f"{name}/{k}": v for name, f in by_locale.items() for k, v in f.items()}
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

    def _asked(self, locale: str) -> tuple[ModalityRetrieval, dict[str, Any]]:
        """These options for one language, and what of a record is read (fields of `DataConfig`)."""
        spoken = "waveform" in self.pair
        paired = set(self.pair) == {"waveform", "text"}
        audio = dataclasses.replace(self.audio, locales=(locale,) if spoken else (), paired=paired)
        return dataclasses.replace(self, locale=locale), dict(modalities=self.pair, audio=audio, video=self.video)

    def _of(self, encoders: Encoders, locale: str, gallery: list[GalleryRow]) -> tuple[dict[str, float], list[GalleryRow]]:
        """The figures of one language, and the gallery, made where `gallery` is empty."""
        a, b = self.pair
        options, asked = self._asked(locale)
        outputs = self._outputs
        shown = self.gallery and not gallery
        rows: tuple[list, list] = ([], [])
        ids, texts, thumbnails = [], [], []
        for batch, n in rows_of(options, encoders, **asked):
            embedded = encoders.outputs({k: v for k, v in batch.items() if k != "id"}, outputs)
            for kept, name in zip(rows, outputs):
                kept.append(embedded[name][:n])
            ids.extend(batch["id"][:n])
            texts.extend(encoders.tokenizer.decode(batch["text"][:n]) if "text" in batch else [""] * n)
            thumbnails.extend(_thumbnail(batch, i, encoders) if shown else None for i in range(n))
        u, v = map(np.concatenate, rows)
        ids = np.asarray(ids)
        every = np.arange(len(ids))
        metrics: dict[str, float] = {}
        sides = {name: _Side(x, ids, every, MODALITY[name] == "vision") for name, x in ((a, u), (b, v))}
        if "text" in self.pair:
            of_text = text_ids(texts)  # then what is right is what has the same text
            first = np.unique(of_text, return_index=True)[1]
            other = a if b == "text" else b
            sides = {other: sides[other]._replace(ids=of_text), "text": _Side(sides["text"].rows[first], of_text[first], first, False)}
            metrics["texts"] = float(len(first))
        elif shown:
            texts = self._names(locale, ids)
        for name, x, y in zip(self._directions, (sides[a], sides[b]), (sides[b], sides[a])):
            ranks = rank(x.rows, y.rows, x.ids, y.ids, encoders.mesh)
            metrics |= _figures(name, ranks)
            if shown:
                source, target = name.split("2")
                heading = f"{source.capitalize()} to {target}" + f", {locale}" * bool(self.locales)
                gallery = gallery + self._shown(encoders, heading, x, y, ranks, texts, thumbnails)
        return metrics | {"records": float(len(u))}, gallery

    def _names(self, locale: str, ids: np.ndarray) -> list[str]:
        """What records are called; sounds can be of a language (`zxx`: of none) that nothing is named in."""
        for named in (locale, self.locale):
            try:
                names = prepared(self.corpus).class_names(named)
            except DataError:
                continue
            return [names[i] or "" for i in ids]
        return [""] * len(ids)

    def _shown(
        self, encoders: Encoders, heading: str, x: _Side, y: _Side, ranks: Ranks, texts: list[str], thumbnails: list[np.ndarray | None]
    ) -> list[GalleryRow]:
        """Queries of `x` with the best of `y`."""
        pick = sample(len(x.rows), self.gallery)
        out, every, pictured = [], ranks.rank(), lambda side, i: png(thumbnails[side.record[i]], THUMBNAIL) if side.pictured else None
        for q, scores, best in zip(pick, *top_k(x.rows[pick], y.rows, SHOWN, encoders.mesh)):
            items = tuple(Item(texts[y.record[c]], float(s), bool(x.ids[q] == y.ids[c]), pictured(y, c)) for s, c in zip(scores, best))
            out.append(GalleryRow(heading, texts[x.record[q]], pictured(x, q), items, float(every[q])))
        return out


class _Side(NamedTuple):
    """One of the two things: rows [n, E], what each is (int [n]), and the record that it is of (int [n])."""

    rows: np.ndarray
    ids: np.ndarray
    record: np.ndarray
    pictured: bool


def _thumbnail(batch: dict[str, np.ndarray], i: int, encoders: Encoders) -> np.ndarray | None:
    """Row `i`'s picture or middle frame, small: uint8 [H, W, 3]; None where it has neither."""
    pixels = batch["image"][i] if "image" in batch else batch["video"][i, batch["video"].shape[1] // 2] if "video" in batch else None
    return None if pixels is None else shrink(flatten(pixels, encoders.preprocess.background), THUMBNAIL)


def _figures(name: str, ranks: Ranks) -> dict[str, float]:
    recall = {k: ranks.recall(k) for k in KS}
    out = {f"{name}_r@{k}": float(r.mean()) for k, r in recall.items()}
    n = len(recall[10])
    low, high = scipy.stats.binomtest(round(float(recall[10].sum())), n).proportion_ci(CONFIDENCE, "wilson")
    return out | {f"{name}_r@10_low": float(low), f"{name}_r@10_high": float(high), f"{name}_r@10_chance": ranks.chance(10)}
