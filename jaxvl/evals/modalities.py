"""Retrieval between any two modalities of a model: video and text, pictures and speech, speech and text."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import scipy.stats

from jaxvl.config import check
from jaxvl.data.modalities import AudioConfig, VideoConfig
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import Ranks, rank
from jaxvl.evals.split import SplitOptions, rows_of, text_ids

Input = Literal["image", "video", "waveform", "text"]
MODALITY = {"image": "vision", "video": "vision", "waveform": "audio", "text": "text"}
KS = (1, 5, 10)
CONFIDENCE = 0.95


@EVALUATORS.register("modalities")
@dataclasses.dataclass(frozen=True)
class ModalityRetrieval(SplitOptions):
    """Retrieval of one thing that a record shows by another, in both directions, for each language on its own.

    Records of one class are right answers for each other. Equal texts are one candidate and one query, so that `video2text_r@1` is
    the accuracy of zero-shot classification among the names of a split. Sounds are the record's first clip in the language, from its
    beginning; with `waveform` and `text` the text is the name in the language of the clip. Records that lack either are left out.

    Figures, for each language (`LOCALE/…` where there are several): `A2B_r@K` for K = 1, 5, 10, with `A2B_r@10_low` and `_high`, the ends
    of Wilson's 95 % interval over queries, `A2B_r@10_chance`, and the same for B2A; `records`. `languages_over_2x`: in how many of them
    A2B_r@10 and B2A_r@10 are both at least twice chance.

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

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError where the model does not compare the two, DataError where no record has both."""
        metrics, over = {}, 0
        for locale in self.locales or (self.locale,):
            figures = self._of(encoders, locale)
            over += all(figures[f"{d}_r@10"] >= 2 * figures[f"{d}_r@10_chance"] for d in self._directions)
            metrics |= {f"{locale}/{k}" if self.locales else k: v for k, v in figures.items()}
        return EvalResult(metrics | ({"languages_over_2x": float(over)} if self.locales else {}), [])

    @property
    def _directions(self) -> tuple[str, str]:
        a, b = self.pair
        return f"{a}2{b}", f"{b}2{a}"

    def _of(self, encoders: Encoders, locale: str) -> dict[str, float]:
        a, b = self.pair
        spoken = "waveform" in self.pair
        audio = dataclasses.replace(self.audio, locales=(locale,) if spoken else (), paired=set(self.pair) == {"waveform", "text"})
        options = dataclasses.replace(self, locale=locale)
        outputs = f"{MODALITY[a]}>{MODALITY[b]}", f"{MODALITY[b]}>{MODALITY[a]}"
        found: tuple[list, list, list, list] = ([], [], [], [])
        for batch, n in rows_of(options, encoders, modalities=self.pair, audio=audio, video=self.video):
            embedded = encoders.outputs({k: v for k, v in batch.items() if k != "id"}, outputs)
            texts = encoders.tokenizer.decode(batch["text"][:n]) if "text" in batch else [""] * n
            for kept, new in zip(found, (embedded[outputs[0]][:n], embedded[outputs[1]][:n], batch["id"][:n], texts)):
                kept.extend(new)
        u, v, ids, texts = np.stack(found[0]), np.stack(found[1]), np.asarray(found[2]), found[3]
        sides = {a: (u, ids), b: (v, ids)}
        if "text" in self.pair:
            of_text = text_ids(texts)  # then what is right is what has the same text
            first = np.unique(of_text, return_index=True)[1]
            other = a if b == "text" else b
            sides = {other: (sides[other][0], of_text), "text": (sides["text"][0][first], of_text[first])}
        metrics: dict[str, float] = {}
        for name, (x, y) in zip(self._directions, ((a, b), (b, a))):
            metrics |= _figures(name, rank(sides[x][0], sides[y][0], sides[x][1], sides[y][1], encoders.mesh))
        return metrics | {"records": float(len(u))}


def _figures(name: str, ranks: Ranks) -> dict[str, float]:
    recall = {k: ranks.recall(k) for k in KS}
    out = {f"{name}_r@{k}": float(r.mean()) for k, r in recall.items()}
    n = len(recall[10])
    low, high = scipy.stats.binomtest(round(float(recall[10].sum())), n).proportion_ci(CONFIDENCE, "wilson")
    return out | {f"{name}_r@10_low": float(low), f"{name}_r@10_high": float(high), f"{name}_r@10_chance": ranks.chance(10)}
