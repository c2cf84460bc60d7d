"""Scores of captions: by hand, and against COCO's own toolkit."""

import math
import shutil

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.evals import text_scores
from jaxvl.evals.captioning import Captioning
from jaxvl.evals.text_scores import bleu, cider_d, cider_d_scores, coco, meteor, rouge_l, words

pytest.importorskip("sacrebleu")
java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A man's self-made 'Kite', (red)!", ["a", "man's", "self-made", "kite", "red"]),
        ("\uff32\uff45\uff44  Stra\u00dfe", ["red", "strasse"]),
        ("\u7ea2\u82f9\u679c 3\u4e2a", ["\u7ea2", "\u82f9", "\u679c", "3", "\u4e2a"]),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u2014 \u0436\u0430\u0440",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0436\u0430\u0440"],
        ),
        ("...", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_bleu_by_hand():
    """All 6 unigrams match, of the 5 bigrams "the cat" and "sat on"; 6 words against 6."""
    got = bleu(["the cat the sat on mat"], [["the cat sat on the mat", "a dog"]])
    np.testing.assert_allclose([got["bleu_1"], got["bleu_2"]], [1.0, math.sqrt(2 / 5)], rtol=1e-6)
    assert got["bleu_4"] == 0
    short = bleu(
        ["red kite"], [["red kite in the sky", "a red kite"]]
    )  # the nearest reference has 3 words
    assert short["bleu_1"] == pytest.approx(math.exp(1 - 3 / 2))


def test_rouge_l_by_hand():
    """Common subsequences: "police the gunman" (3 of 4, 3 of 5) and, of the other reference, one
    word of two."""
    got = rouge_l(["police kill the gunman"], [["the police killed the gunman", "police came"]])[
        "rouge_l"
    ]
    p = 3 / 4
    r = 3 / 5
    assert got == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))


def test_meteor_by_hand():
    """Both stages: "cats" matches "cat" by its stem; 4 matches of 5 and 6 words in 2 chunks."""
    got = meteor(["the cats sat quietly outside"], [["the cat sat outside my house"]])[
        "meteor_exact_stem"
    ]
    p = 4 / 5
    r = 4 / 6
    assert got == pytest.approx((1 - 0.5 * (2 / 4) ** 3) * p * r / (0.9 * p + 0.1 * r))
    assert meteor(["felines"], [["cats"]])["meteor_exact_stem"] == 0  # no synonyms
    assert meteor(["kite"], [["dog", "kite"]])["meteor_exact_stem"] == 0.5


def test_cider_d_by_hand():
    """Two images. Of unigrams "red" is in both (weight 0), so that only "kite" counts; the only
    bigram is right.

    The second text has one word more than its reference, and neither of its n-grams is in it.
    """
    got = cider_d_scores(
        [["red", "kite"], ["red", "blue", "sea"]], [[["red", "kite"]], [["red", "dog"]]]
    )
    np.testing.assert_allclose(got, [10 * (1 + 1 + 0 + 0) / 4, 0.0], atol=1e-12)
    # Words that are repeated are clipped, lengths compared: c = 3 log 2 kite, r = log 2 kite; min .
    # r / |c||r| = 1 / 3.
    got = cider_d_scores([["kite"] * 3, ["dog"]], [[["kite"]], [["dog"]]])
    assert got[0] == pytest.approx(10 / 4 * math.exp(-(2**2) / 72) / 3)
    assert cider_d(["red kite"], [["red kite"]])["cider_d"] == 0  # every n-gram is in every image


def sentences(n, seed=0):
    rng = np.random.default_rng(seed)
    vocabulary = (
        "a the red blue kite cats cat dog running run over green house sea of two three small"
    )
    one = lambda: " ".join(rng.choice(vocabulary.split(), rng.integers(1, 9)))
    return [one() for _ in range(n)], [[one() for _ in range(rng.integers(1, 5))] for _ in range(n)]


def test_against_the_toolkit_of_coco():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts, right = sentences(40)
    long = next(i for i, r in enumerate(right) if len(r[0].split()) > 5)
    texts[long], texts[7] = right[long][0], ""
    given = dict(enumerate(right)), {i: [t] for i, t in enumerate(texts)}
    ours = {**bleu(texts, right), **rouge_l(texts, right), **cider_d(texts, right)}
    expected = dict(
        zip((f"bleu_{n}" for n in (1, 2, 3, 4)), Bleu(4).compute_score(*given, verbose=0)[0])
    )
    expected |= {
        "rouge_l": Rouge().compute_score(*given)[0],
        "cider_d": Cider().compute_score(*given)[0],
    }
    np.testing.assert_allclose([ours[k] for k in expected], list(expected.values()), rtol=1e-6)
    assert ours["bleu_4"] > 0


@java
@pytest.mark.slow
def test_meteor_against_the_java_program():
    """METEOR 1.5 with the parameters and stages of 2005; words stand once in a text, so that only
    one alignment is the best."""
    pytest.importorskip("pycocoevalcap")
    import pathlib
    import subprocess

    import pycocoevalcap.meteor

    rng = np.random.default_rng(1)
    vocabulary = "red blue kite cats dog running green house sea small walked boxes table"
    stems = dict(cats="cat", running="runs", walked="walks", boxes="box", table="tables")
    pairs = []
    while len(pairs) < 25:
        text, right = (
            rng.permutation(vocabulary.split())[: rng.integers(3, 8)].tolist() for _ in range(2)
        )
        right = [stems.get(w, w) if rng.random() < 0.5 else w for w in right]
        pairs.append((" ".join(text), " ".join(right)))
    folder = pathlib.Path(pycocoevalcap.meteor.__path__[0])
    options = ["-l", "en", "-m", "exact stem", "-w", "1.0 1.0", "-p", "0.9 3.0 0.5 1.0", "-stdio"]
    lines = "".join(f"SCORE ||| {r} ||| {t}\n" for t, r in pairs)
    run = lambda text: subprocess.run(
        ["java", "-jar", "meteor-1.5.jar", "-", "-", *options],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    scores = run("".join(f"EVAL ||| {s}\n" for s in run(lines)))[
        ::2
    ]  # each line's score, then that of the whole
    ours = [meteor([t], [[r]])["meteor_exact_stem"] for t, r in pairs]
    np.testing.assert_allclose(ours, [float(s) for s in scores], atol=1e-6)


@java
@pytest.mark.slow
def test_the_toolkit_of_coco_agrees_with_ours_where_they_are_alike():
    pytest.importorskip("pycocoevalcap")
    texts, right = sentences(12, seed=2)
    texts[0] = ""
    got = coco(texts, right)
    ours = {**bleu(texts, right), **rouge_l(texts, right), **cider_d(texts, right)}
    np.testing.assert_allclose(
        [got["coco_bleu_1"], got["coco_rouge_l"], got["coco_cider"]],
        [ours["bleu_1"], ours["rouge_l"], ours["cider_d"]],
        rtol=1e-6,
    )
    assert coco(["a red kite", "two dogs"], [["a red kite"], ["two dogs"]])[
        "coco_meteor"
    ] == pytest.approx(1.0)


def test_what_is_not_installed_is_said_at_once(monkeypatch):
    from known_answers import toy

    monkeypatch.setattr(text_scores.shutil, "which", lambda name: None)
    monkeypatch.setattr(
        text_scores.importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else name
    )
    with pytest.raises(
        ConfigError,
        match=r"scores: 'bleu' needs the package sacrebleu: pip install 'jaxvl\[captioning\]'",
    ):
        Captioning(toy([0]), scores=("cider_d", "bleu"))
    with pytest.raises(
        ConfigError, match="scores: 'coco' runs Java programs and there is no `java`"
    ):
        Captioning(toy([0]), scores=("coco",))
