"""Visualness by a null vector, on texts whose answer is known."""

import numpy as np
import pytest
from known_answers import Records, Toy, encoders, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.visualness import Visualness, area_under_curve
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
COUNT = 40


class Flagged(Records):
    """Records with a flag, of which those of even class are visual unless `all_visual`."""

    def __init__(self, all_visual=False):
        super().__init__([(k, {"en": [f"word {k}", []]}) for k in range(COUNT)])
        self.columns = {**self.columns, "visual": Column("int")}
        self.all_visual = all_visual

    def record(self, i, columns):
        label, _ = self.rows[i]
        return super().record(i, columns) | {"visual": int(self.all_visual or label % 2 == 0)}


def with_null(table, null):
    found = encoders(MESH, table, table)
    outputs = lambda weights, batch: {
        "text": weights["text"][batch["text"][:, 0]],
        "null": np.broadcast_to(np.float32(null), (batch["text"].shape[0], len(null))),
    }
    found.functions = type(found.functions)(found.functions.image, found.functions.text, outputs)
    return found


def evaluator(**changes):
    return Visualness(Toy(Flagged(**changes)), text="name/en")


def test_scores_in_a_loop():
    table = unit(64, 16)
    null = 3 * unit(1, 16, seed=1)[0]
    table[1:COUNT:2] = 0.3 * table[1:COUNT:2] + 0.7 * null / 3
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    subject = evaluator()
    given = with_null(table, null)
    got = subject.run(given).metrics
    assert set(got) == set(subject.figures)
    score = 1 - np.float64(table[:COUNT]) @ np.float64(null) / 3
    pairs = [score[a] > score[b] for a in range(0, COUNT, 2) for b in range(1, COUNT, 2)]
    assert got["auroc"] == pytest.approx(np.mean(pairs)) and got["auroc"] > 0.95
    assert got["visual"] == pytest.approx(score[::2].mean(), abs=1e-6)
    assert got["other"] == pytest.approx(score[1::2].mean(), abs=1e-6)
    assert (got["texts"], got["visual_texts"]) == (COUNT, COUNT / 2)


def test_area_under_the_curve():
    score = np.array([3.0, 1.0, 2.0, 2.0])
    positive = np.array([True, False, True, False])
    assert area_under_curve(score, positive) == (1 + 1 + 1 + 0.5) / 4
    assert area_under_curve(np.zeros(4), positive) == 0.5
    rng = np.random.default_rng(0)
    score = rng.integers(0, 9, 200) / 3
    positive = rng.random(200) < 0.3
    loop = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert area_under_curve(score, positive) == pytest.approx(np.mean(loop))


def test_refusals():
    table = unit(64, 16)
    with pytest.raises(DataError, match="has 40 visual texts among 40; needs both kinds"):
        evaluator(all_visual=True).run(with_null(table, table[0]))
    with pytest.raises(ConfigError, match="visual: 'flag' is not a column"):
        Visualness(Toy(Flagged()), text="name/en", visual="flag").check(with_null(table, table[0]))
