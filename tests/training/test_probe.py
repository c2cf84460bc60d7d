"""What a process knows of the speed of its own devices."""

import jax
import numpy as np

from jaxvl.training import probe
from jaxvl.training.probe import Probe


def test_every_device_is_timed_within_a_mesh_of_all():
    """As in a run, where the mesh has other processes' devices too; the program has no collective."""
    devices = jax.local_devices()[2:4]
    with jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("data",))):
        ours = Probe(devices)
        assert (ours.count, ours.slowest()) == (0, (0.0, 0)), "what compiles is not counted"
        for _ in range(3):
            ours.run()
    seconds, worst = ours.slowest()
    assert ours.count == 3 and 1e-5 < seconds < 5 and worst in (0, 1)
    text = ours._program.lower(ours._matrices).compile().as_text()
    assert " dot(" in text or "custom-call" in text
    for collective in ("all-gather", "all-reduce", "permute", "all-to-all", "reduce-scatter"):
        assert collective not in text
    ours.forget()
    assert ours.count == 0


def test_the_median_counts_and_the_slowest_device(monkeypatch):
    ours = Probe(jax.local_devices()[:2])
    ours._times = [[0.004, 0.006], [0.004, 0.1], [0.9, 0.005]]
    assert ours.slowest() == (0.006, 1)


def test_products_stay_finite_however_many():
    """A device of the fastest kind multiplies hundreds of times."""
    ours = Probe(jax.local_devices()[:1])
    found = np.asarray(ours._matrices[0], np.float32)
    signs = found
    for _ in range(200):
        found = found @ signs
    assert np.isfinite(found).all() and np.abs(found).max() > 1e-6


def test_its_time_grows_with_its_work(monkeypatch):
    def best(seconds):
        monkeypatch.setattr(probe, "SECONDS", seconds)
        ours = Probe(jax.local_devices()[:1])
        for _ in range(7):
            ours.run()
        return min(ours._times)[0]

    assert best(0.04) > 4 * best(0.004)
