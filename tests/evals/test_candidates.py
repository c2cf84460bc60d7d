"""Precision among candidates of one's own, against a loop and closed forms."""

import jax
import numpy as np
import pytest
from known_answers import Records, Toy, encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.candidates import CandidatePrecision, drawn, first_share
from jaxvl.sharding.mesh import MeshConfig, make_mesh

LABELS = list(range(40)) + [3, 3, 7]
OPTIONS = dict(source=toy(LABELS), text="name/en", gallery=0)
TABLES = unit(64, 6), unit(64, 6, seed=1)


@pytest.fixture(scope="module")
def model():
    return encoders(make_mesh(MeshConfig(data=-1), jax.devices()), *TABLES)


def test_against_a_loop(model):
    """All records are candidates: those of the same text are left out, so 40 - 1 others of most."""
    for query, (asks, answers) in (("image", TABLES), ("text", TABLES[::-1])):
        found = CandidatePrecision(**OPTIONS, query=query).run(model).metrics
        right = []
        for k in LABELS:
            scores = [answers[j] @ asks[k] for j in LABELS if j != k]
            right.append(answers[k] @ asks[k] > max(scores))
        assert 0 < np.mean(right) < 1
        np.testing.assert_allclose(found["precision@1"], np.mean(right))
        assert found["queries"] == len(LABELS)
        counts = [1 + sum(j != k for j in LABELS) for k in LABELS]
        np.testing.assert_allclose(found["candidates"], np.mean(counts))


def test_fewer_candidates_are_easier_and_the_same_each_time(model):
    few = CandidatePrecision(**OPTIONS, most_candidates=4)
    one, two = (few.run(model).metrics for _ in range(2))
    many = CandidatePrecision(**OPTIONS).run(model).metrics
    assert one == two
    assert one["precision@1"] > many["precision@1"] and one["precision@1_chance"] == 0.25
    assert CandidatePrecision(**OPTIONS, most_queries=5).run(model).metrics["queries"] == 5


def test_an_encoder_that_knows_nothing_is_at_chance(model):
    blind = encoders(model.mesh, np.ones((64, 2)), np.ones((64, 2)))
    found = CandidatePrecision(**OPTIONS, most_candidates=10).run(blind).metrics
    np.testing.assert_allclose(found["precision@1"], 0.1)


def test_the_template_stands_around_the_text(model):
    """The toy's tokenizer reads all digits of a text: with another one it is another class."""
    knowing = encoders(model.mesh, TABLES[0], TABLES[0])
    right, wrong = (
        CandidatePrecision(**OPTIONS, template=template).run(knowing).metrics["precision@1"]
        for template in ("find {}", "{} of 0")
    )
    assert right == 1.0 and wrong < 0.2


def test_drawing():
    ids = np.array([0, 1, 0, 2, 3])
    assert drawn(ids, 2, 10)[0] == 2 and set(drawn(ids, 2, 10)) == {1, 2, 3, 4}
    assert len(set(drawn(ids, 2, 3))) == 3
    assert [first_share(np.array(s)) for s in ([1.0, 1.0, 0.0], [0.0, 1.0])] == [0.5, 0.0]


def test_refusals(model):
    with pytest.raises(ConfigError, match="template: 'a' must hold"):
        CandidatePrecision(**OPTIONS, template="a")
    same = Toy(Records([(1, {"en": ["word 1", []]})] * 3))
    with pytest.raises(DataError, match="has not two images with different texts"):
        CandidatePrecision(**{**OPTIONS, "source": same}).run(model)
