"""Scores of pairs by a model: cosines of the right pairs, whatever pictures cannot be encoded."""

import types

import numpy as np
import pytest

from jaxvl.config import resolve
from jaxvl.data.preparing.options import Rules
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.pair_scores import CheckpointScorer, PairScores

ROWS = {
    b"x": [1.0, 0.0],
    b"y": [0.0, 1.0],
    b"z": [0.6, 0.8],
    "x": [1.0, 0.0],
    "y": [0.0, 1.0],
    "z": [0.8, 0.6],
}


class Encoders:
    def images(self, source):
        pictures = [source.read(i, ("image",))["image"] for i in range(len(source))]
        good = [i for i, picture in enumerate(pictures) if picture in ROWS]
        rows = np.array([ROWS[pictures[i]] for i in good], np.float32).reshape(-1, 2)
        return types.SimpleNamespace(rows=rows, index=np.array(good, np.int64))

    def texts(self, texts):
        return np.array([ROWS[text] for text in texts], np.float32)


def test_each_text_is_compared_with_its_own_picture():
    found = PairScores(Encoders()).scores(
        [b"x", b"bad", b"z", b"y"], [["x", "z"], ["y"], ["z"], []]
    )
    assert [some.tolist() for some in found[:1]] == [pytest.approx([1.0, 0.8])]
    assert np.isnan(found[1]).tolist() == [True]
    assert found[2].tolist() == pytest.approx([0.96])
    assert found[3].shape == (0,)


def test_no_texts_and_no_pictures():
    assert PairScores(Encoders()).scores([], []) == []
    assert [some.shape for some in PairScores(Encoders()).scores([b"x"], [[]])] == [(0,)]


def test_the_scorer_is_found_by_name_and_names_what_is_missing(tmp_path):
    rules = resolve(
        Rules, dict(score=dict(name="checkpoint", workdir=str(tmp_path)), min_score=0.2)
    )
    assert rules.score == CheckpointScorer(str(tmp_path))
    with pytest.raises(CheckpointError):
        rules.score.open()
