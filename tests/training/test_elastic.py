"""A run that goes on with a part of its devices learns what it would have learnt with all."""

import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny import losses

from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.elastic import fitted

ALL = dict(resume=dict(devices=8))


def train(experiment, workdir, devices):
    """A run that sees so many devices only."""
    with pytest.MonkeyPatch.context() as patch:
        few = jax.devices()[:devices]
        patch.setattr("jaxvl.train.make_mesh", lambda config: make_mesh(config, few))
        patch.setattr("jaxvl.train.fitted", lambda experiment, _: fitted(experiment, devices))
        return train_command.train(experiment, workdir)


@pytest.mark.parametrize("mesh", [dict(data=-1), dict(data=4, fsdp=2)])
def test_half_of_the_devices_take_twice_as_many_microbatches(mesh):
    planned = tiny.experiment(**ALL, mesh=mesh)
    half = fitted(planned, 4)
    assert half.tasks["pairs"].microbatches == 2
    assert half.tasks["pairs"].data == planned.tasks["pairs"].data
    shape = dict(zip(("data", "fsdp", "tensor", "expert"), half.mesh.shape(4)))
    assert shape["data"] * shape["fsdp"] == 4 and shape["fsdp"] == mesh.get("fsdp", 1)
    assert fitted(planned, 8) is planned
    plain = tiny.experiment()
    assert fitted(plain, 4) is plain


@pytest.mark.parametrize(
    "devices, changes, said",
    [
        (
            3,
            {},
            "resume.devices: 8 is not a multiple of the 3 devices that are here; the run can go on "
            "with 1, 2, 4, 8",
        ),
        (16, {}, "resume.devices: 8 is not a multiple of the 16 devices that are here; "),
        (
            1,
            dict(tasks=dict(pairs=tiny.task(batch=4))),
            "microbatches: 8 must divide the batch of 4",
        ),
    ],
)
def test_devices_that_do_not_fit(devices, changes, said):
    with pytest.raises(ConfigError) as told:
        fitted(tiny.experiment(**ALL, **changes), devices)
    assert str(told.value).startswith(said)


@pytest.mark.parametrize("devices", [4, 1])
def test_a_run_that_loses_devices_goes_on_as_if_it_had_not(tmp_path, devices):
    whole = tmp_path / "whole"
    train(tiny.experiment(**ALL), whole, 8)
    part = tmp_path / "part"
    shutil.copytree(whole / "checkpoints" / "3", part / "checkpoints" / "3")
    train(tiny.experiment(**ALL), part, devices)
    expected = losses(whole)
    found = losses(part)
    assert sorted(found) == [4, 5, 6]
    np.testing.assert_allclose(
        [found[s] for s in (4, 5, 6)], [expected[s] for s in (4, 5, 6)], rtol=1e-5
    )
    assert Checkpoints(part / "checkpoints", read_only=True).frame()[1]["positions"] == {
        "pairs": 96
    }
    # And with all of them again.
    shutil.rmtree(part / "checkpoints" / "6")
    train(tiny.experiment(**ALL), part, 8)


def test_without_it_other_microbatches_are_refused(tmp_path):
    train(tiny.experiment(), tmp_path, 8)
    pairs = tiny.task() | dict(microbatches=2)
    with pytest.raises(ConfigError, match="^tasks.pairs.microbatches: 1 in the checkpoint"):
        train(tiny.experiment(**ALL, tasks=dict(pairs=pairs)), tmp_path, 8)
