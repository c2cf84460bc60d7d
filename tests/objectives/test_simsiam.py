"""SimSiam and BYOL across modalities: the release's equation in float64, what has a gradient."""

import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import call, compare, same_on_a_mesh, unit, value_and_gradients

from jaxvl.config import ConfigError
from jaxvl.objectives.byol import Byol
from jaxvl.objectives.simsiam import SimSiam

GUESSES = ("predicted_text/image", "predicted_image/text")
TRUTHS = ("projected_text/text", "projected_image/image")
SLOW = tuple(f"momentum/{name}" for name in TRUTHS)


def rows(names, b=6, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(b, d)) for name in names}


def distance(guess, truth):
    return np.mean(2 - 2 * (unit(guess) * unit(truth)).sum(1))


def release(o, truth, names):
    return np.mean([distance(o[g], truth[t]) for g, t in zip(GUESSES, names)])


def test_simsiam_is_the_release_and_targets_have_no_gradient():
    o = rows(GUESSES + TRUTHS)
    still = {name: np.float64(np.float32(o[name])) for name in TRUTHS}
    compare(SimSiam(), o, {}, lambda x: release(x, still, TRUTHS), fixed=TRUTHS)


def test_byol_is_the_release_with_the_teachers_rows():
    o = rows(GUESSES)
    slow = rows(SLOW, seed=1)
    low = {name: jnp.float32(x) for name, x in slow.items()}
    compare(Byol(), o, low, lambda x: release(x, slow, SLOW))
    assert Byol().batch_keys == SLOW and Byol().reads == GUESSES


@pytest.mark.parametrize("b", [2, 8])
def test_orthonormal_rows(b):
    """A prediction of its own row costs 0, of another one 2; of the opposite one 4."""
    eye = np.eye(b, dtype=np.float32)
    for turned, want in ((eye, 0.0), (np.roll(eye, 1, 0), 2.0), (-eye, 4.0)):
        o = dict.fromkeys(GUESSES, eye) | dict.fromkeys(TRUTHS, turned)
        value, gradients = value_and_gradients(SimSiam(), o, {})
        assert value == pytest.approx(want, abs=1e-6)
        assert all(np.isfinite(g).all() for g in gradients.values())
        slow = dict.fromkeys(SLOW, turned)
        assert call(Byol(), dict.fromkeys(GUESSES, eye), slow).value == value


def test_what_has_collapsed_has_no_spread():
    o = rows(GUESSES + TRUTHS, b=512, d=16)
    assert call(SimSiam(), o, {}).metrics["spread"] == pytest.approx(1.0, abs=0.05)
    o |= {name: np.ones((512, 16)) for name in TRUTHS}
    assert call(SimSiam(), o, {}).metrics["spread"] == pytest.approx(0.0, abs=1e-5)


def test_devices():
    same_on_a_mesh(SimSiam(), rows(GUESSES + TRUTHS, b=16), {})
    same_on_a_mesh(Byol(), rows(GUESSES, b=16), rows(SLOW, b=16, seed=1))


def test_refusals():
    for kind in (SimSiam, Byol):
        with pytest.raises(ConfigError, match=r"pairs: \[\] must be pairs"):
            kind(pairs=())
