"""CLIP-MoE by its stages: what each trains, where its experts come from, what is reported."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.adapters.upcycle import ALL_BUT_ROUTERS
from jaxvl.config import load_file
from jaxvl.nn.moe import losses
from jaxvl.training.restore import restore_encoders
from jaxvl.training.stages import build_stages, train_stages

pytestmark = pytest.mark.usefixtures("one_device", "programs_kept")

CONFIG = load_file("configs/methods/clip_moe.py")
EVEN = np.log(4)


def stages():
    """The shipped config's stages `dense`, `mcl_1` and `moe`, of two sources, in miniature."""
    named = {stage["name"]: dict(stage) for stage in CONFIG.to_dict()["stages"]}
    chosen = {name: named[name] for name in ("dense", "mcl_1", "moe")}
    for stage in chosen.values():
        del stage["name"]
    chosen["dense"] |= dict(steps=3)
    chosen["dense"]["after"]["clusters"] |= dict(k=2)
    chosen["mcl_1"].pop("after")
    chosen["moe"]["start"] = (dict(source=("{stages.dense}", "{stages.mcl_1}")),)
    chosen["same"] = {**chosen["moe"], "start": (dict(source=("{stages.dense}",)),), "steps": 1}
    return chosen


SHARED = tiny.config(
    steps=3,
    optim=dict(lr=1e-2, warmup=0, weight_decay=0.1),
    tasks=dict(pairs=dict(tiny.task(), objectives=dict(clip=1.0))),
).to_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("clip_moe")
    train_stages(build_stages(SHARED, stages(), workdir), train_command.train, workdir)
    return workdir


def weights(workdir, stage, step=3):
    return tiny.saved_state(workdir / stage, step)["params"]


@pytest.mark.slow
def test_mcl_trains_the_mlps_and_nothing_else(run):
    dense, mcl = weights(run, "dense"), weights(run, "mcl_1")
    assert dense.keys() == mcl.keys()
    for path, value in dense.items():
        changed = np.abs(value - mcl[path]).max() > 1e-4
        assert changed == ("/mlp/" in path), path


@pytest.mark.slow
def test_the_experts_are_the_stages_and_only_the_routers_are_trained(run):
    sources = weights(run, "dense"), weights(run, "mcl_1")
    moe = weights(run, "moe")
    routers = [path for path in moe if "/moe/router/" in path]
    assert len(routers) == 2, "of both towers"
    for path, value in moe.items():
        if path in routers:
            continue
        if "/moe/experts/" not in path:
            np.testing.assert_array_equal(value, sources[0][path.replace("moe_blocks", "blocks")])
            continue
        dense = path.replace("moe_blocks", "blocks").replace("/moe/experts/", "/mlp/")
        for expert in range(4):
            np.testing.assert_array_equal(value[:, expert], sources[expert % 2][dense])
    fresh = weights(run, "same", 1)
    assert all(np.abs(moe[path] - fresh[path]).max() > 1e-3 for path in routers)


@pytest.mark.slow
def test_identical_experts_are_the_dense_model(run):
    """Whatever the routers say: their two weights sum to 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    rows = []
    for stage in ("dense", "same"):
        _, _, encoders = restore_encoders(run / stage)
        encoders = encoders.with_weights(_plain(encoders.weights, run, stage))
        rows.append((encoders.images(pixels).rows, encoders.texts(["two red stars", "one ring"])))
    for dense, experts in zip(*rows):
        print("largest difference:", np.abs(experts - dense).max())
        np.testing.assert_allclose(experts, dense, atol=1e-5)


def _plain(encoded, run, stage):
    """The trained weights of a stage; those of evaluation are averages, which lag behind."""
    params, model_state = encoded
    step = 1 if stage == "same" else 3
    saved = weights(run, stage, step)
    return {path: jnp.asarray(saved[path]) for path in params}, model_state


@pytest.mark.slow
def test_the_load_of_the_experts_is_reported(run):
    lines = [json.loads(line) for line in (run / "moe/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 3
    for line in steps:
        assert 0 < line["routing/load_entropy"] <= EVEN + 1e-6
        assert line["routing/dropped"] == 0
        loads = [line[f"routing/load/{e}"] for e in range(4)]
        assert sum(loads) == pytest.approx(1, abs=1e-5)
        balance = 0.01 * line["routing/balance"]
        assert line["loss/routing"] == pytest.approx(balance, rel=1e-4)
        assert line["loss"] == pytest.approx(line["loss/clip"] + balance, rel=1e-4)
    print("load entropy:", [line["routing/load_entropy"] for line in steps])


def test_balance_is_that_of_the_release():
    """E sum over choices and experts of (share of tokens) (mean probability): K times ours."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 30, 4))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-probs, -1)[..., :2]
    masks = np.eye(4)[order]  # [1, S, K, E]
    release = 4 * (masks.mean((0, 1)) * probs.mean((0, 1))).sum()
    ours = losses.balance(
        jnp.asarray(probs, jnp.float32),
        jnp.asarray(masks.sum(2), jnp.float32),
        jnp.ones((1, 30), jnp.float32),
    )
    np.testing.assert_allclose(2 * ours, release, rtol=1e-5)


def test_the_config_freezes_what_the_method_does():
    named = {stage["name"]: stage for stage in CONFIG.to_dict()["stages"]}
    assert list(named) == ["dense", "mcl_1", "mcl_2", "mcl_3", "moe"]
    assert named["moe"]["optim"]["freeze"] == ALL_BUT_ROUTERS
    assert named["moe"]["start"][0]["source"] == tuple(f"{{stages.{n}}}" for n in list(named)[:4])
    assert named["mcl_3"]["after"]["clusters"]["within"] == ("earlier",)
