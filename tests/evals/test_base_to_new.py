"""Base to new classes: `zero_shot` on either, and the harmonic mean."""

import jax
import numpy as np
from known_answers import encoders, toy, unit

from jaxvl.evals.base_to_new import BaseToNew, harmonic
from jaxvl.sharding.mesh import MeshConfig, make_mesh

TABLE = unit(64, 16)


def test_either_is_among_its_own_classes():
    """Of the new classes 5 and 6 are taken for each other; 7 … 10 are right."""
    table = TABLE.copy()
    table[[5, 6]] = table[[6, 5]]
    mesh = make_mesh(MeshConfig(data=-1), jax.devices()[:1])
    evaluator = BaseToNew(toy(range(5), classes=12), new=toy(range(5, 11), classes=12, name="new"))
    found = evaluator.run(encoders(mesh, TABLE, table)).metrics
    assert (found["base"], found["new"]) == (1.0, 4 / 6)
    np.testing.assert_allclose(found["harmonic"], 2 / (1 / 1.0 + 6 / 4))
    assert set(found) == set(evaluator.figures) and len(evaluator.sources) == 2


def test_harmonic_mean():
    assert harmonic(0.0, 1.0) == 0.0 and harmonic(0.5, 0.5) == 0.5
