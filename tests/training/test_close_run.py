"""CLOSE from its config, in miniature: captions of pictures by decoders that saw none."""

import pathlib

import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.config import load_file
from jaxvl.training.stages import build_stages, recorded_stages, train_stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

CONFIG = pathlib.Path(__file__).parents[2] / "configs/methods/close.py"
SEEDS = (0, 1, 2)
SIZE = 24
NOISE = 0.12


def small(seed):
    """The config's shared part and stages: small pictures; the captioner with noise and without,
    and one that is trained on pictures."""
    shared = load_file(str(CONFIG)).to_dict()
    towers, captioner = (dict(stage) for stage in shared.pop("stages"))
    for model in (shared["model"], captioner["model"]):
        model["image"] |= dict(variant="Ti/4", width=64, depth=2, heads=2)
        model["text"] |= dict(width=48)
    shared["seed"] = seed
    shared["preprocess"]["image_size"] = SIZE
    pairs = shared["tasks"]["pairs"]["data"]
    pairs["fields"]["image"]["size"] = SIZE
    captions = captioner["tasks"]["captions"]["data"]
    written = captioner["evals"]["written"]
    for source in (pairs, captions, written, shared["evals"]["seen_style"]):
        source["source"]["size"] = SIZE
    shared["log"] = dict(every=100, tensorboard=False, report=False)
    of = lambda data, **options: dict(
        captioner,
        start=(dict(captioner["start"][0]),),
        model={**captioner["model"], **options},
        tasks={**captioner["tasks"], "captions": {**captioner["tasks"]["captions"], "data": data}},
    )
    seen = {**captions, "fields": {**captions["fields"], "image": pairs["fields"]["image"]}}
    stages = dict(
        towers=towers,
        noise=of(captions, noise=NOISE),
        plain=of(captions, noise=0.0),
        images=of(seen, condition="image"),
    )
    for stage in stages.values():
        stage.pop("name", None)
    return shared, stages


def trained(workdir, seed):
    stages = build_stages(*small(seed), workdir)
    train_stages(stages, train_command.train, workdir)
    found = {stage["stage"]: stage["figures"] for stage in recorded_stages(workdir)}
    print(seed, found, flush=True)
    return {name: f["written/exact"] for name, f in found.items() if name != "towers"}


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_makes_up_for_pictures_that_were_not_seen(seed, tmp_path):
    found = trained(tmp_path, seed)
    assert found["noise"] > found["plain"]
    # Of what pictures add, noise gives most.
    assert found["noise"] - found["plain"] > 0.5 * (found["images"] - found["plain"]), found
    before = tiny.saved_state(tmp_path / "towers", 300)["params"]
    after = tiny.saved_state(tmp_path / "noise", 300)["params"]
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
