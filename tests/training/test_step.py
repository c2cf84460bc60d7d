"""The training step: microbatches, guards, masks, meshes."""

import dataclasses
import functools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl.config import ConfigError
from jaxvl.data.packing import pack
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from jaxvl.training.build import build_model, draw_state, fresh_state, make_forward, make_tasks
from jaxvl.training.compile import make_update
from jaxvl.training.guard import GuardConfig, GuardState, judge
from jaxvl.training.step import Part, make_step


@OBJECTIVES.register("scale_up")
@dataclasses.dataclass(frozen=True)
class ScaleUp(Objective):
    """Lower where the log-scale is larger."""

    reads: ClassVar[tuple[str, ...]] = ("log_scale",)

    def __call__(self, outputs, batch, state, context):
        return Loss(-outputs["log_scale"]), state


def batch(rows=16):
    rng = np.random.default_rng(0)
    text = rng.integers(2, tokenizer().vocab_size, (rows, 6), np.int32)
    text[np.arange(6) >= rng.integers(2, 7, (rows, 1))] = 0  # padding
    return {
        "image": rng.integers(0, 255, (rows, 16, 16, 4), np.uint8),
        "text": text,
        "group_id": np.arange(rows, dtype=np.int32),
        "position": np.arange(rows, dtype=np.int32),
    }


@functools.cache
def tokenizer():
    return make_tokenizer(
        tiny.experiment().tokenizer,
        ["red circle", "two blue squares", "three green stars", "a ring and a cross"] * 4,
    )


@functools.cache
def built(text, devices):
    """(mesh, first state, compiled step) of the miniature with changes, kept."""
    experiment = tiny.experiment(**json.loads(text))
    mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer())
        fresh, _, shardings = fresh_state(experiment, model, mesh)
        born = jax.jit(fresh, out_shardings=shardings)
        state = born() if devices > 1 else jax.device_put(fresh(), shardings)
        update = make_update(experiment, model)
        forward = make_forward(experiment, make_tasks(experiment)["pairs"], model)
        part = Part(forward, 1.0, frozenset(p for p, yes in update.trained.items() if yes))
        step = make_step([part], update, ["pairs"])
        return mesh, state, jax.jit(step, out_shardings=(shardings, None))


def run(n_steps=2, devices=1, poison=None, values=None, **changes):
    """(state, metrics of the last step) after `n_steps` on the first `devices` devices."""
    mesh, state, step = built(json.dumps(changes), devices)
    with jax.set_mesh(mesh):
        values = jax.device_put(values or batch(), batch_sharding(mesh))
        for i in range(n_steps):
            if poison == i:
                broken = (
                    {**state.params, "log_scale": jnp.float32(jnp.nan)}
                    if "log_scale" in state.params
                    else None
                )
                state = dataclasses.replace(state, params=broken)
            state, (metrics,) = step(state, (values,), np.zeros(1, np.int32))
        if poison is None:
            assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0, (
                "a skipped step would make every comparison hold"
            )
        return jax.device_get((state, metrics))


def initial(**changes):
    """The state before the first step of `run`."""
    return jax.device_get(built(json.dumps(changes), 1)[1])


def close(a, b, tolerance):
    for path in a.params:
        np.testing.assert_allclose(
            a.params[path], b.params[path], rtol=tolerance, atol=tolerance, err_msg=path
        )


def tasks(**changes):
    pairs = tiny.config().to_dict()["tasks"]["pairs"]
    return dict(tasks=dict(pairs={**pairs, **changes}))


SGD_LIKE = dict(
    optim=dict(lr=1e-3, warmup=0, eps=1.0, clip_norm=None)
)  # no division by tiny second moments


@functools.cache
def plain():
    """The run that others are compared with: one device, the batch as a whole."""
    return run(**SGD_LIKE, mesh=dict(data=1))


@pytest.mark.slow  # on a mesh as well: `test_microbatches_on_a_mesh`
@pytest.mark.parametrize("n", [2, 4])
def test_microbatches_keep_all_negatives(n):
    whole, m1 = plain()
    chunked, m2 = run(**SGD_LIKE, **tasks(microbatches=n))
    np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-5)
    np.testing.assert_allclose(m1["norm/gradient"], m2["norm/gradient"], rtol=1e-4)
    close(whole, chunked, 1e-6)


@pytest.mark.slow
def test_microbatches_of_a_captioner():
    """Some of its outputs are booleans; its loss is a mean over tokens, of which chunks hold
    different numbers."""
    objectives = dict(clip=1.0, captioning=2.0)
    whole, m1 = run(**SGD_LIKE, model=tiny.COCA, **tasks(objectives=objectives))
    chunked, m2 = run(**SGD_LIKE, model=tiny.COCA, **tasks(objectives=objectives, microbatches=4))
    for name in ("loss/clip", "loss/captioning", "captioning/token_accuracy", "norm/gradient"):
        np.testing.assert_allclose(m1[name], m2[name], rtol=1e-4)
    close(whole, chunked, 1e-6)


def interleaved(rows=16, k=2):
    one = batch(rows * k)
    wide = {
        name: one[name].reshape(rows, k, *one[name].shape[1:])
        for name in ("image", "group_id", "position")
    }
    texts = np.where((one["text"] == 0) | (np.arange(6) == 5), 1, one["text"]).reshape(rows, k, 6)
    return {**wide, **pack(texts, 10, eos_id=1, pad_id=0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sycoca", "cosmo"])
def test_microbatches_of_captioners_on_a_mesh(name):
    """Their loss is a mean over tokens, of which chunks hold different numbers; some outputs are
    booleans, some not of the batch's shape."""
    model = dict(tiny.COCA, name=name)
    objectives = dict(clip=dict(duplicates="positive"), captioning=2.0) | (
        dict(masked_image=1.0) if name == "sycoca" else {}
    )
    data = tiny.data(interleave=dict(records=2, length=10) if name == "cosmo" else None)
    values = interleaved() if name == "cosmo" else batch()
    use = dict(**SGD_LIKE, model=model, values=values)
    whole, m1 = run(**use, mesh=dict(data=1), **tasks(objectives=objectives, data=data))
    parts, m2 = run(
        **use,
        devices=4,
        mesh=dict(data=2, fsdp=2),
        **tasks(objectives=objectives, data=data, microbatches=2),
    )
    for figure in (
        *(f"loss/{o}" for o in objectives),
        "captioning/token_accuracy",
        "norm/gradient",
    ):
        np.testing.assert_allclose(m1[figure], m2[figure], rtol=1e-4)
    close(whole, parts, 1e-5)


@pytest.mark.slow  # the next one has both axes, and parts besides
@pytest.mark.parametrize("mesh", [dict(data=8), dict(data=2, fsdp=4), dict(data=1, fsdp=8)])
def test_any_mesh_gives_the_numbers_of_one_device(mesh):
    one, m1 = plain()
    many, m8 = run(**SGD_LIKE, devices=8, mesh=mesh)
    np.testing.assert_allclose(m1["loss"], m8["loss"], rtol=1e-5)
    close(one, many, 1e-5)


def test_microbatches_on_a_mesh():
    one, m1 = plain()
    many, m8 = run(**SGD_LIKE, devices=8, mesh=dict(data=2, fsdp=4), **tasks(microbatches=2))
    np.testing.assert_allclose(m1["loss"], m8["loss"], rtol=1e-5)
    np.testing.assert_allclose(m1["norm/gradient"], m8["norm/gradient"], rtol=1e-4)
    close(one, many, 1e-5)


QUICK = dict(optim=dict(lr=1e-2, warmup=0, ema=0.9))


def test_a_non_finite_step_is_skipped_and_counted():
    state, metrics = run(n_steps=1, poison=0, **QUICK)
    fresh, _ = run(n_steps=1, **QUICK)
    assert not np.isfinite(metrics["loss"])
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (1, 1)
    assert state.step == 1, "the step is counted, so that schedule and data go on"
    assert all(np.isfinite(v).all() for p, v in state.params.items() if p != "log_scale")
    moments = [m for m in jax.tree.leaves(state.opt_state) if np.ndim(m)]
    assert all((m == 0).all() for m in moments), "moments are those before the bad step"
    assert any((m != 0).any() for m in jax.tree.leaves(fresh.opt_state) if np.ndim(m)), (
        "a good step moves them"
    )


def test_a_gradient_spike_is_skipped_only_once_the_norm_is_known():
    config = GuardConfig(spike=5.0, patience=3)
    state = GuardState.fresh()
    accepted = []
    for norm in (1.0, 50.0, 1.0, 1.0, 1000.0, 1.0):
        ok, state = judge(config, state, jnp.float32(1.0), jnp.float32(norm))
        accepted.append(bool(ok))
    assert accepted == [True, True, True, True, False, True]
    assert (int(state.skipped), int(state.in_a_row)) == (1, 0)


@pytest.mark.parametrize("freeze", [None, "^text/"])
def test_norms_of_the_towers(freeze):
    """By float64 from the gradient itself: Adam's first moment after one step is a tenth of it. One
    that is frozen has none."""
    state, metrics = run(1, optim=dict(lr=1e-3, warmup=0, clip_norm=None, freeze=freeze))
    moments = {}
    for path, leaf in jax.tree.leaves_with_path(state.opt_state):
        keys = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        if "mu" in keys:
            part = keys[-1].partition("/")[0]
            moments.setdefault(part, []).append(np.square(10 * np.float64(leaf)).sum())
    told = {
        name.removeprefix("norm/gradient/"): value
        for name, value in metrics.items()
        if name.startswith("norm/gradient/")
    }
    assert (
        told.keys()
        == moments.keys()
        == {"image", "text", "log_scale"} - ({"text"} if freeze else set())
    )
    for part, squares in moments.items():
        np.testing.assert_allclose(told[part], np.sqrt(sum(squares)), rtol=1e-5, err_msg=part)
    whole = np.sqrt(sum(np.square(np.float64(value)) for value in told.values()))
    np.testing.assert_allclose(metrics["norm/gradient"], whole, rtol=1e-6)


def test_a_clamped_scale_stays_within_its_bound_and_one_in_the_loss_goes_beyond():
    model = {**tiny.config().to_dict()["model"], "init_scale": 5.0, "max_scale": 5.0}
    found = {}
    for clamp in ("update", "loss"):
        optim = dict(lr=0.5, warmup=0, clamp=clamp, freeze="^(image|text)/", unused="decay")
        state, metrics = run(
            1, model=model, optim=optim, **tasks(objectives=dict(rise=dict(name="scale_up")))
        )
        found[clamp] = float(state.params["log_scale"])
    assert found["update"] == np.float32(np.log(5.0)) < found["loss"] - 0.4


def test_a_clamp_without_a_bound_is_refused():
    model = {**tiny.config().to_dict()["model"], "max_scale": None}
    with pytest.raises(ConfigError, match="optim.clamp: 'update': no parameter of the model has"):
        run(1, model=model, optim=dict(warmup=0, clamp="update"))


def test_frozen_parameters_and_their_moments_stay():
    state, _ = run(optim=dict(lr=1e-2, warmup=0, freeze="^text/"))
    fresh = initial(optim=dict(lr=1e-2, warmup=0, freeze="^text/"))
    moved = {p for p in state.params if (state.params[p] != fresh.params[p]).any()}
    assert moved and not any(p.startswith("text/") for p in moved)
    assert not any(
        "text/" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    )


def test_ema_follows_the_parameters():
    state, _ = run(n_steps=1, **QUICK)
    fresh = initial(**QUICK)
    for p in state.params:  # decay (1 + 0) / (10 + 0) = 0.1 at step 0
        np.testing.assert_allclose(
            state.ema[p], 0.1 * fresh.params[p] + 0.9 * state.params[p], rtol=1e-5, atol=1e-7
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_a_first_state_is_the_same_with_little_effort_and_with_its_seed_as_an_argument(seed):
    """Bit for bit what a program gives that is compiled as usual and has the seed as a constant."""
    usual = dict(xla_backend_optimization_level=3, xla_llvm_disable_expensive_passes=False)
    experiment = tiny.experiment(seed=seed)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        fresh, _, shardings = fresh_state(experiment, build_model(experiment, tokenizer()), mesh)
        drawn = draw_state(fresh, seed, shardings, mesh)
        expected = jax.jit(fresh, out_shardings=shardings, compiler_options=usual)()
    for path, value in expected.params.items():
        np.testing.assert_array_equal(drawn.params[path], value, path)
    np.testing.assert_array_equal(drawn.rng, expected.rng)


def test_state_is_sharded_over_fsdp():
    experiment = tiny.experiment(mesh=dict(data=1, fsdp=8))
    mesh = make_mesh(MeshConfig(1, 8))
    model = build_model(experiment, tokenizer())
    _, shapes, shardings = fresh_state(experiment, model, mesh)
    held = sum(
        np.prod(s.shard_shape(v.shape))
        for v, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings))
        if v.ndim
    )
    total = sum(np.prod(v.shape) for v in jax.tree.leaves(shapes) if v.ndim)
    assert held < 0.35 * total
