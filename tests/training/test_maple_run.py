"""MaPLe from its config, in miniature: base to new classes against prompts of the texts alone."""

import copy
import pathlib

import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.config import load_file
from jaxvl.training.stages import build_stages, recorded_stages, train_stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

CONFIG = pathlib.Path(__file__).parents[2] / "configs/methods/maple.py"
SEEDS = (0, 1, 2)
SIZE = 24


def small(seed):
    """The config's shared part and stages: small pictures, a third stage with prompts of the texts
    alone, from the same weights."""
    shared = load_file(f"{CONFIG}:seed={seed}").to_dict()
    base, coupled = (dict(stage) for stage in shared.pop("stages"))
    shared["model"]["image"] |= dict(variant="Ti/4", width=64, depth=2, heads=2)
    shared["model"]["text"] |= dict(width=48, depth=2)
    shared["preprocess"]["image_size"] = SIZE
    shared["tasks"]["pairs"]["data"]["fields"]["image"]["size"] = SIZE
    sources = [
        shared["tasks"]["pairs"]["data"]["source"],
        coupled["tasks"]["pairs"]["data"]["source"],
        shared["evals"]["sketches"]["source"],
        shared["evals"]["sketches"]["new"],
    ]
    for source in sources:
        source["size"] = SIZE
    shared["log"] = dict(every=100, tensorboard=False, report=False)
    alone = copy.deepcopy(coupled)
    del alone["adapters"]["maple"]["coupled"]
    for stage in (base, coupled, alone):
        del stage["name"]
    return shared, dict(base=base, coupled=coupled, alone=dict(alone, start="{stages.base}"))


def trained(workdir, seed):
    stages = build_stages(*small(seed), workdir)
    train_stages(stages, train_command.train, workdir)
    found = {stage["stage"]: stage["figures"] for stage in recorded_stages(workdir)}
    print(seed, found, flush=True)
    return {name: figures["sketches/harmonic"] for name, figures in found.items()}


def test_both_towers_prompts_are_better_than_those_of_the_texts(tmp_path):
    by_seed = [trained(tmp_path / str(seed), seed) for seed in SEEDS]
    gain = [found["coupled"] - found["alone"] for found in by_seed]
    assert np.mean(gain) > 0 and sum(g > 0 for g in gain) >= 2, by_seed
    assert all(found["coupled"] > found["base"] for found in by_seed), by_seed
    before = tiny.saved_state(tmp_path / "0" / "base", 300)["params"]
    after = tiny.saved_state(tmp_path / "0" / "coupled", 150)["params"]
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    added = sorted(set(after) - set(before))
    assert added == ["adapter/maple/tokens"] + [
        f"image/encoder/transformer/adapter/maple/map/{name}" for name in ("bias", "kernel")
    ]
