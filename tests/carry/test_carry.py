"""Methods of every family, each one file and one config in this folder, outside the package.

What is here proves that the frame carries them: `METHODS` says what each run must show. A method
that needs an edit of the package fails here.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxvl import paths
from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.experiment import Experiment

FOLDER = pathlib.Path(__file__).parent
LONGEST = 60  # lines of a method with its config


def run(name: str, workdir: pathlib.Path, devices: int, **changes) -> list[dict]:
    """The records of a run of the method's config."""
    config = load_file(str(FOLDER / "configs" / f"{name}.py"))
    config.update(changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "make_mesh", lambda c: make_mesh(c, jax.devices()[:devices]))
        train_command.train(resolve(Experiment, config), paths.as_path(workdir))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """Name -> the records of the method's run on one device, which several tests look at."""
    return functools.cache(lambda name: run(name, tmp_path_factory.mktemp(name), devices=1))


def steps(records: list[dict], figure: str) -> list[float]:
    return [r[figure] for r in records if r["kind"] == "train"]


def the_queue_fills(records):
    assert steps(records, "momentum_queue/filled") == [16, 32, 32, 32]


def the_step_hurts(records):
    (found,) = [r for r in records if r["kind"] == "eval"]
    assert found["pushed"] < found["clean"]


def tables_are_made_anew(records):
    made = [r["step"] for r in records if r["name"] == "table/halves"]
    assert made == [0, 2, 4]


def few_parameters_are_trained(records):
    (program,) = [r for r in records if r["name"] == "compile/pairs"]
    assert program["trains"] == 2 * (2 * 16) + 2 * 64


def nothing_more(records):
    pass


METHODS = {
    "momentum_queue": the_queue_fills,
    "soft_targets": nothing_more,
    "mixed_inputs": nothing_more,
    "prototypes": nothing_more,
    "token_match": nothing_more,
    "negative_free": nothing_more,
    "pair_matching": nothing_more,
    "rescaled": few_parameters_are_trained,
    "sorted_batches": tables_are_made_anew,
    "adversarial": the_step_hurts,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_frame_carries(name, on_one_device):
    records = on_one_device(name)
    losses = steps(records, "loss")
    assert len(losses) == 4 and np.isfinite(losses).all()
    METHODS[name](records)


# The queue is state, sharded as the prototypes are, and read beside a teacher.
@pytest.mark.parametrize(
    "name", ["momentum_queue", pytest.param("prototypes", marks=pytest.mark.slow)]
)
def test_state_is_the_same_on_every_mesh_and_in_microbatches(name, on_one_device, tmp_path):
    """Queue and prototypes are sharded; the teacher reads the batch chunk by chunk."""
    one = steps(on_one_device(name), "loss")
    chunks = dict(pairs=dict(microbatches=2))
    mesh = dict(data=4, fsdp=2)
    many = steps(run(name, tmp_path, devices=8, mesh=mesh, tasks=chunks), "loss")
    np.testing.assert_allclose(one, many, rtol=1e-5)
    assert one[0] != one[3], "steps learn something"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_short(name):
    files = (FOLDER / f"{name}.py", FOLDER / "configs" / f"{name}.py")
    assert sum(len(file.read_text().splitlines()) for file in files) <= LONGEST


def test_every_method_here_is_run():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files - {pathlib.Path(__file__).stem} == METHODS.keys()
