"""Barlow Twins across modalities: the paper's equation in float64, closed forms, devices."""

import numpy as np
import pytest
from objective_checks import compare, same_on_a_mesh, value_and_gradients

from jaxvl.config import ConfigError
from jaxvl.objectives.barlow import Barlow

IMAGE = "barlow_image/image"
TEXT = "barlow_text/text"


def example(b=7, d=5, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(b, d))
    return {name: shared + 0.7 * rng.normal(size=(b, d)) + 3 for name in (IMAGE, TEXT)}


def paper(x, y, off=5e-3, scale=0.025):
    standard = lambda z: (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    correlation = standard(x).T @ standard(y) / len(x)
    weight = np.where(np.eye(x.shape[1], dtype=bool), 1.0, off)
    return scale * (weight * (correlation - np.eye(x.shape[1])) ** 2).sum()


def test_equation():
    compare(Barlow(), example(), {}, lambda o: paper(o[IMAGE], o[TEXT]))
    strong = Barlow(off_diagonal=1.0, scale=1.0)
    compare(strong, example(), {}, lambda o: paper(o[IMAGE], o[TEXT], 1.0, 1.0))


def test_several_pairs_are_their_mean():
    o = example() | {"other": example(seed=1)[IMAGE]}
    objective = Barlow(pairs=((IMAGE, TEXT), ("other", TEXT)))
    compare(objective, o, {}, lambda o: (paper(o[IMAGE], o[TEXT]) + paper(o["other"], o[TEXT])) / 2)


@pytest.mark.parametrize("b", [2, 6])
def test_orthonormal_rows(b):
    """Centred, the coordinates of b orthonormal rows have the correlation -1 / (b - 1)."""
    eye = np.eye(b, dtype=np.float32)
    objective = Barlow(scale=1.0, epsilon=1e-12)
    value, gradients = value_and_gradients(objective, {IMAGE: eye, TEXT: eye}, {})
    assert value == pytest.approx(5e-3 * b / (b - 1), rel=1e-4)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_coordinates_that_do_not_vary_cost_one_each():
    flat = {IMAGE: np.ones((4, 3), np.float32), TEXT: np.ones((4, 3), np.float32)}
    value, gradients = value_and_gradients(Barlow(scale=1.0), flat, {})
    assert value == pytest.approx(3.0)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_statistics_are_those_of_all_devices():
    o = example(b=16)
    assert abs(paper(o[IMAGE][:2], o[TEXT][:2]) / paper(o[IMAGE], o[TEXT]) - 1) > 0.1
    same_on_a_mesh(Barlow(), o, {})


def test_refusals():
    with pytest.raises(ConfigError, match="epsilon: 0.0 must be > 0"):
        Barlow(epsilon=0.0)
    with pytest.raises(ConfigError, match="must be pairs of outputs"):
        Barlow(pairs=())
