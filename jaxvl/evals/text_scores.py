"""Scores of captions against references: BLEU, ROUGE-L, METEOR, CIDEr-D and COCO's.

Each takes one text per image and that image's references, in the same order, and gives figures by
name. All but `coco` see the words of `words`; they run without Java and without a network. `coco`
is what papers report: the same texts through the Penn Treebank tokenizer and METEOR 1.5, both Java
programs inside the package `pycocoevalcap`.
"""

from __future__ import annotations

import collections
import importlib.util
import math
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxvl.config import ConfigError

References = Sequence[Sequence[str]]

# Scripts written without spaces, as ranges of code points: Thai and Lao, Myanmar, Khmer, kana, CJK
# ideographs.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0x20000, 0x3FFFF),
)


def words(text: str) -> list[str]:
    """Words of a text without case, width and punctuation; every character of a script without
    spaces is a word.

    Apostrophes and hyphens inside a word stay: "Rock'n'roll, self-made!" -> rock'n'roll, self-made.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    out = []
    for i, c in enumerate(text):
        joins = (
            c in "'-" and 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
        )
        if any(low <= ord(c) <= high for low, high in _UNSPACED):
            c = f" {c} "
        elif unicodedata.category(c)[0] in "PSZC" and not joins:
            c = " "
        out.append(c)
    return "".join(out).split()


def bleu(texts: Sequence[str], references: References) -> dict[str, float]:
    """`bleu_1` … `bleu_4` of the whole corpus (Papineni et al. 2002), in 0 … 1, by `sacrebleu`
    without smoothing.

    The brevity penalty takes the reference nearest in length. A corpus without one match of length
    n has `bleu_n` = 0.
    """
    from sacrebleu.metrics import BLEU

    most = max(len(r) for r in references)
    streams = [
        [" ".join(words(r[i])) if i < len(r) else None for r in references] for i in range(most)
    ]
    texts = [" ".join(words(t)) for t in texts]
    of = lambda n: (
        BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
        .corpus_score(texts, streams)
        .score
    )
    return {f"bleu_{n}": of(n) / 100 for n in (1, 2, 3, 4)}


def rouge_l(texts: Sequence[str], references: References) -> dict[str, float]:
    """`rouge_l`: mean over images of the F-measure of the longest common subsequence (Lin 2004), by
    `rouge-score`.

    As in COCO's toolkit: the best precision and the best recall over the references, recall
    weighing beta = 1.2 times.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = []
    for text, right in zip(texts, references):
        pairs = [scorer.score(r, text)["rougeL"] for r in right]
        p = max(s.precision for s in pairs)
        r = max(s.recall for s in pairs)
        scores.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0)
    return {"rouge_l": float(np.mean(scores))}


def meteor(texts: Sequence[str], references: References) -> dict[str, float]:
    """`meteor_exact_stem`: mean over images of METEOR of 2005 (Banerjee & Lavie) with its exact and
    Porter stages, by `nltk`.

    The stage of synonyms is left out, as it would need WordNet to be downloaded; stems are English.
    It is not the METEOR 1.5 of the papers (that is `coco`): even a perfect text of one word scores
    0.5, because one chunk of one match is penalised.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer = PorterStemmer()
    split = [words(t) for t in texts]
    scores = [
        meteor_score(
            [words(r) for r in right], text, preprocess=str, stemmer=stemmer, wordnet=_NoSynonyms()
        )
        for text, right in zip(split, references)
    ]
    return {"meteor_exact_stem": float(np.mean(scores))}


def cider_d(texts: Sequence[str], references: References) -> dict[str, float]:
    """`cider_d`: mean over images of CIDEr-D (Vedantam et al. 2015, section 6), in 0 … 10."""
    return {
        "cider_d": float(
            cider_d_scores(
                [words(t) for t in texts], [[words(r) for r in right] for right in references]
            ).mean()
        )
    }


def cider_d_scores(
    texts: Sequence[list[str]], references: Sequence[Sequence[list[str]]], sigma: float = 6.0
) -> np.ndarray:
    """CIDEr-D of each image, float64 [N], in 0 … 10.

    CIDEr-D_n(c, S) = 10 / |S| sum_r exp(-(l_c - l_r)^2 / 2 sigma^2) min(g_n(c), g_n(r)) . g_n(r) /
    |g_n(c)| |g_n(r)|, and the mean of n = 1 … 4. g_n holds the count of each n-gram times log(N /
    images that have it in a reference). An n-gram that all images share therefore counts nothing,
    and a corpus of one image scores 0.
    """
    grams = lambda text, n: collections.Counter(
        tuple(text[i : i + n]) for i in range(len(text) - n + 1)
    )
    total = np.zeros(len(texts))
    for n in (1, 2, 3, 4):
        counted = [[grams(r, n) for r in right] for right in references]
        df = collections.Counter(g for right in counted for g in set().union(*right))
        vector = lambda counts, df=df: {
            g: c * (math.log(len(texts)) - math.log(max(1, df[g]))) for g, c in counts.items()
        }
        norm = lambda v: math.sqrt(sum(x * x for x in v.values()))
        for i, text in enumerate(texts):
            c = vector(grams(text, n))
            for words_of, counts in zip(references[i], counted[i]):
                r = vector(counts)
                scale = norm(c) * norm(r)
                if scale:
                    dot = sum(min(c[g], r[g]) * r[g] for g in c.keys() & r.keys())
                    total[i] += (
                        math.exp(-((len(text) - len(words_of)) ** 2) / (2 * sigma**2))
                        * dot
                        / scale
                        / len(references[i])
                    )
    return 10 * total / 4


def coco(texts: Sequence[str], references: References) -> dict[str, float]:
    """`coco_bleu_1` … `coco_bleu_4`, `coco_meteor`, `coco_rouge_l`, `coco_cider`, by
    `pycocoevalcap`; needs Java, no network."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenize = lambda groups: PTBTokenizer().tokenize(
        {i: [{"caption": _line(t)} for t in g] for i, g in enumerate(groups)}
    )
    right = tokenize(references)
    written = tokenize([[t] for t in texts])
    figures = {
        f"coco_bleu_{n}": s
        for n, s in zip((1, 2, 3, 4), Bleu(4).compute_score(right, written, verbose=0)[0])
    }
    scorers = {"coco_meteor": Meteor(), "coco_rouge_l": Rouge(), "coco_cider": Cider()}
    figures |= {name: scorer.compute_score(right, written)[0] for name, scorer in scorers.items()}
    return {name: float(score) for name, score in figures.items()}


class Score(NamedTuple):
    """A score: texts and references -> `figures`; the packages that it imports, and the extra of
    jaxvl that has them."""

    function: Callable[[Sequence[str], References], dict[str, float]]
    figures: tuple[str, ...]
    packages: tuple[str, ...] = ()
    extra: str = ""


_COCO = (
    "coco_bleu_1",
    "coco_bleu_2",
    "coco_bleu_3",
    "coco_bleu_4",
    "coco_meteor",
    "coco_rouge_l",
    "coco_cider",
)
SCORES: Mapping[str, Score] = {
    "bleu": Score(bleu, ("bleu_1", "bleu_2", "bleu_3", "bleu_4"), ("sacrebleu",), "captioning"),
    "rouge_l": Score(rouge_l, ("rouge_l",), ("rouge_score",), "captioning"),
    "meteor": Score(meteor, ("meteor_exact_stem",), ("nltk",), "captioning"),
    "cider_d": Score(cider_d, ("cider_d",)),
    "coco": Score(coco, _COCO, ("pycocoevalcap",), "coco"),
}


def check_scores(names: Sequence[str]) -> None:
    """Raises ConfigError at `scores` where one of them needs what is not installed, so that no run
    finds out at its end."""
    for name in names:
        for package in SCORES[name].packages:
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    "scores",
                    f"{name!r} needs the package {package}: pip install "
                    f"'jaxvl[{SCORES[name].extra}]'",
                )
    if "coco" in names and shutil.which("java") is None:
        without = "'bleu', 'rouge_l', 'meteor' and 'cider_d' do without it"
        raise ConfigError(
            "scores",
            f"'coco' runs Java programs and there is no `java` on PATH; install a Java "
            f"runtime (>= 8), or take others: {without}",
        )


class _Words:
    """The tokenizer that `rouge-score` asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class _NoSynonyms:
    """Stands for WordNet."""

    def synsets(self, word: str) -> list:
        return []


def _line(text: str) -> str:
    """The Java programs read a line per text, and none that is empty."""
    return " ".join(text.split()) or "."
