"""Mean rank variance, on ranks that are known."""

import numpy as np
import pytest
from known_answers import Records, Toy, encoders, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.mrv import MeanRankVariance, mean_rank_variance
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
COUNT = 30


def source(wrong):
    """English is right everywhere; German says instance i + 1 of the first `wrong` ones, in a
    circle."""
    german = [(i + 1) % wrong if i < wrong else i for i in range(COUNT)]
    rows = [(i, {"en": [f"word {i}", []], "de": [f"Wort {german[i]}", []]}) for i in range(COUNT)]
    return Toy(Records(rows, {"en": [f"word {i}" for i in range(COUNT)]})), german


def test_ranks_in_a_loop():
    config, german = source(wrong=10)
    table = unit(64, 16)
    evaluator = MeanRankVariance(config, texts=("name/en", "name/de"))
    got = evaluator.run(encoders(MESH, table, table)).metrics
    assert set(got) == set(evaluator.figures) - {"skipped/*"}
    scores = table[:COUNT] @ table[:COUNT].T
    place = lambda row, right: 1 + (row > row[right]).sum()
    first = np.ones(COUNT)
    second = np.array([place(scores[i], german[i]) for i in range(COUNT)])
    ranks = np.stack([first, second], 1)
    assert second.max() > 5
    assert got["i2t_mrv"] == pytest.approx(np.mean([np.var(r) for r in ranks]))
    assert got["i2t_mrv_std"] == pytest.approx(np.mean([np.std(r) for r in ranks]))
    assert got["i2t_r@1/name/en"] == 1.0
    assert got["i2t_r@1/name/de"] == pytest.approx((COUNT - 10) / COUNT)
    assert got["instances"] == COUNT


def test_languages_that_agree_have_none():
    config, _ = source(wrong=1)
    got = MeanRankVariance(config, texts=("name/en", "name/de")).run(
        encoders(MESH, unit(64, 16), unit(64, 16, seed=1))
    )
    assert got.metrics["i2t_mrv"] == got.metrics["t2i_mrv"] == 0.0
    assert got.metrics["mean_r@1"] < 0.5  # agreeing is not being right


def test_variance_and_deviation():
    variance, deviation = mean_rank_variance(np.array([[1.0, 3.0], [2.0, 2.0]]))
    assert (variance, deviation) == (0.5, 0.5)
    assert mean_rank_variance(np.array([[1.0, 5.0]])) == (4.0, 2.0)


def test_refusals():
    with pytest.raises(ConfigError, match="texts: .* must be two or more different columns"):
        MeanRankVariance(source(1)[0], texts=("name/en",))
    rows = [(i, {"en": [f"word {i}", []]}) for i in range(3)] + [(3, {"de": ["Wort 3", []]})]
    with pytest.raises(DataError, match="no image with a text in name/en, name/de"):
        MeanRankVariance(Toy(Records(rows)), texts=("name/en", "name/de")).run(
            encoders(MESH, unit(64, 16), unit(64, 16))
        )
