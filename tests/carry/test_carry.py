"""Methods of every family, each one file and one config in this folder, outside the package.

What is here proves that the frame carries them: `METHODS` says what each run must show. A method
that needs an edit of the package fails here.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxvl import paths
from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training import setup
from jaxvl.training.experiment import Experiment
from jaxvl.training.restore import restore_weights
from jaxvl.training.stages import build_stages, train_stages

FOLDER = pathlib.Path(__file__).parent
LONGEST = 60  # lines of a method with its config


class Finished(NamedTuple):
    """A run that has ended: what it has logged, of a run with stages the last one's; and where."""

    records: list[dict]
    workdir: pathlib.Path


def run(name: str, workdir: pathlib.Path, devices: int, **changes) -> Finished:
    """A run of the method's config."""
    config = load_file(str(FOLDER / "configs" / f"{name}.py"))
    config.update(changes)
    stages = {s["name"]: {k: s[k] for k in s if k != "name"} for s in config.get("stages", ())}
    last = workdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "make_mesh", lambda c: make_mesh(c, jax.devices()[:devices]))
        if stages:
            shared = {key: value for key, value in config.to_dict().items() if key != "stages"}
            built = build_stages(shared, stages, paths.as_path(workdir))
            train_stages(built, train_command.train, paths.as_path(workdir))
            last = pathlib.Path(built[-1].workdir)
        else:
            train_command.train(resolve(Experiment, config), paths.as_path(workdir))
    lines = (last / "metrics.jsonl").read_text().splitlines()
    return Finished([json.loads(line) for line in lines], workdir)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """Name -> the method's run on one device, which several tests look at."""
    return functools.cache(lambda name: run(name, tmp_path_factory.mktemp(name), devices=1))


def steps(records: list[dict], figure: str) -> list[float]:
    return [r[figure] for r in records if r["kind"] == "train"]


def the_queue_fills(records, workdir):
    assert steps(records, "momentum_queue/filled") == [16, 32, 32, 32]


def the_step_hurts(records, workdir):
    (found,) = [r for r in records if r["kind"] == "eval"]
    assert found["pushed"] < found["clean"]


def tables_are_made_anew(records, workdir):
    made = [r["step"] for r in records if r["name"] == "table/halves"]
    assert made == [0, 2, 4]


def few_parameters_are_trained(records, workdir):
    (program,) = [r for r in records if r["name"] == "compile/pairs"]
    assert program["trains"] == 2 * (2 * 16) + 2 * 64


def colours_are_read(records, workdir):
    assert min(steps(records, "mean_colour/spread")) > 0.01


def the_older_map_stays_what_it_was(records, workdir):
    """The second stage's head is the first one's projection, by path, after all steps."""
    old, new = (restore_weights(workdir / stage).params for stage in ("old", "new"))
    head = "heads/old/perceptron/linears/0/kernel"
    np.testing.assert_array_equal(new[head], old["image/projection/kernel"])
    assert np.any(new["image/projection/kernel"] != old["image/projection/kernel"])


def nothing_more(records, workdir):
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
    "old_space": the_older_map_stays_what_it_was,
    "mean_colour": colours_are_read,
}


# Of what others hold as well (teachers, mixtures, hard negatives, pairs of tokens) the step is
# traced daily; it is compiled and run nightly.
TRACED = [name for name, check in METHODS.items() if check is nothing_more]


@pytest.mark.parametrize("name", TRACED)
def test_a_step_is_traced(name, tmp_path, monkeypatch):
    class Traced(Exception):
        pass

    def compiled(lowered, **options):
        raise Traced

    def compile_turns(*args):
        monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
        return compile_(*args)

    compile_ = setup.compile_turns
    monkeypatch.setattr(setup, "compile_turns", compile_turns)
    with pytest.raises(Traced):
        run(name, tmp_path, devices=1)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in TRACED else []) for name in METHODS],
)
def test_the_frame_carries(name, on_one_device):
    records, workdir = on_one_device(name)
    losses = steps(records, "loss")
    assert len(losses) == 4 and np.isfinite(losses).all()
    METHODS[name](records, workdir)


# The queue is state, sharded as the prototypes are, and read beside a teacher.
@pytest.mark.parametrize(
    "name", ["momentum_queue", pytest.param("prototypes", marks=pytest.mark.slow)]
)
def test_state_is_the_same_on_every_mesh_and_in_microbatches(name, on_one_device, tmp_path):
    """Queue and prototypes are sharded; the teacher reads the batch chunk by chunk."""
    one = steps(on_one_device(name).records, "loss")
    chunks = dict(pairs=dict(microbatches=2))
    mesh = dict(data=4, fsdp=2)
    many = steps(run(name, tmp_path, devices=8, mesh=mesh, tasks=chunks).records, "loss")
    np.testing.assert_allclose(one, many, rtol=1e-5)
    assert one[0] != one[3], "steps learn something"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_short(name):
    files = (FOLDER / f"{name}.py", FOLDER / "configs" / f"{name}.py")
    assert sum(len(file.read_text().splitlines()) for file in files) <= LONGEST


def test_every_method_here_is_run():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files - {pathlib.Path(__file__).stem} == METHODS.keys()
