"""Methods of every family, each one file and one config in this folder, outside the package.

What is here proves that the frame carries them: `METHODS` says what each run must show. A method
that needs an edit of the package fails here.
"""

import json
import pathlib

import numpy as np
import pytest

from jaxvl import paths
from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.training.experiment import Experiment
from jaxvl.training.restore import restore_weights
from jaxvl.training.stages import build_stages, train_stages

FOLDER = pathlib.Path(__file__).parent
LONGEST = 60  # lines of a method with its config


def run(name: str, workdir: pathlib.Path, **changes) -> list[dict]:
    """The records of a run of the method's config; of one with stages, those of the last."""
    config = load_file(str(FOLDER / "configs" / f"{name}.py"))
    config.update(changes)
    stages = {s["name"]: {k: s[k] for k in s if k != "name"} for s in config.get("stages", ())}
    if stages:
        shared = {key: value for key, value in config.to_dict().items() if key != "stages"}
        built = build_stages(shared, stages, paths.as_path(workdir))
        train_stages(built, train_command.train, paths.as_path(workdir))
        workdir = built[-1].workdir
    else:
        train_command.train(resolve(Experiment, config), paths.as_path(workdir))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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


@pytest.mark.parametrize("name", METHODS)
def test_the_frame_carries(name, tmp_path):
    records = run(name, tmp_path)
    losses = steps(records, "loss")
    assert len(losses) == 4 and np.isfinite(losses).all()
    METHODS[name](records, tmp_path)


@pytest.mark.parametrize("name", ["momentum_queue", "prototypes"])
def test_state_is_the_same_on_every_mesh_and_in_microbatches(name, tmp_path):
    """Queue and prototypes are sharded; the teacher reads the batch chunk by chunk."""
    one = steps(run(name, tmp_path / "one", mesh=dict(data=1, tensor=8)), "loss")
    chunks = dict(pairs=dict(microbatches=2))
    many = steps(run(name, tmp_path / "many", mesh=dict(data=4, fsdp=2), tasks=chunks), "loss")
    np.testing.assert_allclose(one, many, rtol=1e-5)
    assert one[0] != one[3], "steps learn something"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_short(name):
    files = (FOLDER / f"{name}.py", FOLDER / "configs" / f"{name}.py")
    assert sum(len(file.read_text().splitlines()) for file in files) <= LONGEST


def test_every_method_here_is_run():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files - {pathlib.Path(__file__).stem} == METHODS.keys()
