"""Alternating gradient descent: what a task learns, summed tasks, signatures; against optax, plain
loops and sums."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxvl.tasks import Task
from jaxvl.training.compile import used_parameters
from jaxvl.training.forward import Forward
from jaxvl.training.guard import GuardConfig
from jaxvl.training.optim import OptimConfig, ema_decay, optimiser
from jaxvl.training.state import GuardState, TrainState
from jaxvl.training.step import Part, Update, make_step

# --------------------------------------------------------------------------------------------------
# What a loss depends on

f32 = jnp.float32


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def through_everything(p):
    """Uses `stack`, `deep`, `own`; not `counted`, `stopped`, `stopped_stack`, `index`, `shown`."""

    def layer(x, weights):
        return jnp.tanh(x * weights[0] + jax.lax.stop_gradient(weights[1])), x.sum()

    x, sums = jax.lax.scan(jax.checkpoint(layer), jnp.ones(3), (p["stack"], p["stopped_stack"]))
    x = x + jax.jit(lambda a, b: a * jax.lax.stop_gradient(b))(p["deep"], p["stopped"])
    x = (
        x
        + doubled(p["own"])
        + x[jnp.argmax(p["index"])] * jnp.round(p["counted"]).astype(jnp.int32)
    )
    return x.sum() + jax.lax.stop_gradient(sums.sum() + (p["shown"] ** 2).sum())


def test_used_parameters():
    shapes = {
        name: jax.ShapeDtypeStruct((3,), f32)
        for name in ("deep", "stopped", "own", "index", "counted", "shown")
    }
    shapes |= {name: jax.ShapeDtypeStruct((2, 3), f32) for name in ("stack", "stopped_stack")}
    assert used_parameters(through_everything, shapes) == {"stack", "deep", "own"}


# --------------------------------------------------------------------------------------------------
# A toy: `a` belongs to the task "one", `b` to "two", `s` to both

AXES = {"a/kernel": ("embed", "mlp"), "b/kernel": ("embed", "mlp"), "s/kernel": ("embed", "mlp")}
LEARNS = {"one": frozenset({"a/kernel", "s/kernel"}), "two": frozenset({"b/kernel", "s/kernel"})}


class Model:
    """Linear; the option `factor` scales its output."""

    @staticmethod
    def apply(params, rest, batch, *, train, key, progress, factor=1.0):
        return {
            "a": factor * batch["x"] @ (params["a/kernel"] + params["s/kernel"]),
            "b": factor * batch["x"] @ (params["b/kernel"] + params["s/kernel"]),
        }, rest


def toy_task(name, microbatches=1):
    def loss(outputs, batch, states, context):
        value = jnp.mean((outputs["a" if name == "one" else "b"] - batch["y"]) ** 2)
        return value + 1e-3 * jax.random.normal(context.key), ({}, states)

    return types.SimpleNamespace(
        name=name,
        config=types.SimpleNamespace(microbatches=microbatches),
        objectives={},
        loss=loss,
        hooks={},
        inputs=lambda batch, key: batch,
        per_row=lambda outputs, inputs: outputs,
    )


def toy_params():
    return {p: jax.random.normal(jax.random.key(i), (4, 3)) for i, p in enumerate(AXES)}


def toy_batch(i):
    return {
        "x": jax.random.normal(jax.random.key(10 + i), (8, 4)),
        "y": jax.random.normal(jax.random.key(50 + i), (8, 3)),
        "position": jnp.arange(8),
    }


def toy_state(config):
    tx, _ = optimiser(config, AXES)
    params = toy_params()
    return TrainState(
        step=jnp.int32(0),
        rng=jax.random.key_data(jax.random.key(0)),
        params=params,
        model_state={},
        opt_state=tx.init(params),
        ema=None if config.ema is None else dict(params),
        teachers={},
        objective_state={},
        guard={t: GuardState.fresh() for t in LEARNS},
    )


@functools.cache
def toy_step(config, names, weights=(1.0, 1.0), microbatches=1, options=()):
    """`step(state, batches, numbers)` of a turn of `names`."""
    tx, trained = optimiser(config, AXES)
    everything = frozenset(AXES)
    parts = [
        Part(
            Forward(toy_task(n, microbatches), Model, dict(options)),
            w,
            LEARNS[n] if config.unused == "skip" else everything,
        )
        for n, w in zip(names, weights)
    ]
    update = Update(tx, trained, lambda step: 0.1 / (1.0 + step), config, GuardConfig())
    return jax.jit(make_step(parts, update, list(LEARNS)))


def slope(name, params, batch):
    """The gradient of a task's loss, in NumPy."""
    x = np.asarray(batch["x"], np.float64)
    y = np.asarray(batch["y"], np.float64)
    own = "a/kernel" if name == "one" else "b/kernel"
    error = x @ (params[own].astype(np.float64) + params["s/kernel"]) - y
    g = 2 * x.T @ error / error.size
    return {p: (g if p in (own, "s/kernel") else 0 * g).astype(np.float32) for p in AXES}


@functools.cache
def reference(config):
    """An optimiser of one parameter: init, update."""
    chain, _ = optimiser(config, {"kernel": AXES["a/kernel"]})
    return chain.init, jax.jit(chain.update)


@pytest.mark.parametrize("unused", ["skip", "decay"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "lion", "muon"])
def test_unused_parameters(name, unused):
    """Each parameter has an optimiser of its own in the reference, which sees only the steps that
    move it."""
    config = OptimConfig(
        name=name,
        unused=unused,
        weight_decay=0.1,
        clip_norm=None,
        b1=0.8,
        b2=0.9,
        eps=1e-4,
        ema=0.9,
    )
    steps = {n: toy_step(config, (n,)) for n in LEARNS}
    state = toy_state(config)
    turns = ["one", "one", "two", "one", "two"]
    params = {p: np.asarray(v) for p, v in state.params.items()}
    average = dict(params)
    init, update_of = reference(dataclasses.replace(config, unused="skip"))
    states = {p: init({"kernel": params[p]}) for p in AXES}
    for i, task in enumerate(turns):
        gradient = slope(task, params, toy_batch(i))
        before = state
        for p in AXES:
            if unused == "skip" and p not in LEARNS[task]:
                continue
            known = (
                optax.tree_utils.tree_set(
                    states[p], lambda path, _: path[-1].name == "count", count=jnp.int32(i)
                )
                if name in ("adamw", "lamb", "muon")
                else states[p]
            )
            update, states[p] = update_of({"kernel": gradient[p]}, known, {"kernel": params[p]})
            params[p] = params[p] - np.asarray(0.1 / (1 + i) * update["kernel"])
        decay = float(ema_decay(config.ema, i))
        average = {p: decay * e + (1 - decay) * params[p] for p, e in average.items()}
        state, _ = steps[task](state, (toy_batch(i),), jnp.array([list(LEARNS).index(task)]))
        for p in AXES:
            np.testing.assert_allclose(
                state.params[p], params[p], rtol=2e-3, atol=2e-5, err_msg=f"{p} after step {i}"
            )
            np.testing.assert_allclose(
                state.ema[p],
                average[p],
                rtol=2e-3,
                atol=2e-5,
                err_msg=f"average of {p} after step {i}",
            )
            same = [np.array_equal(x, y) for x, y in zip(leaves(before, p), leaves(state, p))]
            if p not in LEARNS[task]:
                assert all(same) if unused == "skip" else not all(same), f"{p} at step {i}"


def leaves(state, name):
    """What the state holds of a parameter: its value and its moments."""
    found = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    return [leaf for path, leaf in found if f"'{name}'" in jax.tree_util.keystr(path)]


def test_microbatches_and_unused_parameters():
    config = OptimConfig(weight_decay=0.1, clip_norm=1.0)
    whole, chunked = (
        toy_step(config, ("one",), microbatches=n)(
            toy_state(config), (toy_batch(0),), jnp.array([0])
        )[0]
        for n in (1, 4)
    )
    for p in AXES:
        np.testing.assert_allclose(whole.params[p], chunked.params[p], rtol=1e-4, atol=1e-6)
    assert (chunked.params["b/kernel"] == toy_params()["b/kernel"]).all() and (
        chunked.params["a/kernel"] != toy_params()["a/kernel"]
    ).any()


def test_a_summed_step_has_the_sum_of_the_gradients():
    config = OptimConfig(b1=0.0, clip_norm=None)  # the first moment is the gradient
    batches = (toy_batch(0), toy_batch(1))
    state = toy_state(config)
    together, metrics = toy_step(config, ("one", "two"), (1.0, 0.25))(
        state, batches, jnp.array([0, 1])
    )
    params = {p: np.asarray(v) for p, v in state.params.items()}
    expected = [slope(n, params, b) for n, b in zip(LEARNS, batches)]
    for p in AXES:
        (mu,) = [
            v
            for path, v in jax.tree_util.tree_leaves_with_path(together.opt_state)
            if f".mu['{p}']" in jax.tree_util.keystr(path)
        ]
        np.testing.assert_allclose(mu, expected[0][p] + 0.25 * expected[1][p], rtol=1e-4, atol=1e-6)
    alone = [
        toy_step(config, (n,))(state, (b,), jnp.array([i]))[1][0]["loss"]
        for i, (n, b) in enumerate(zip(LEARNS, batches))
    ]
    np.testing.assert_allclose([m["loss"] for m in metrics], alone, rtol=1e-6)
    np.testing.assert_allclose(metrics[0]["summed_loss"], alone[0] + 0.25 * alone[1], rtol=1e-6)


def test_the_number_of_a_task_chooses_its_keys_and_its_guard():
    config = OptimConfig(clip_norm=None)
    step = toy_step(config, ("one",))
    state = toy_state(config)
    broken = {**toy_batch(0), "y": jnp.full((8, 3), jnp.nan)}
    after, metrics = step(state, (broken,), jnp.array([1]))
    assert [int(after.guard[t].skipped) for t in LEARNS] == [0, 1] and int(
        metrics[0]["skipped"]
    ) == 1
    losses = [float(step(state, (toy_batch(0),), jnp.array([i]))[1][0]["loss"]) for i in (0, 1)]
    assert losses[0] != losses[1], "random keys are those of the task"
    bad = toy_step(config, ("one", "two"))(state, (broken, toy_batch(1)), jnp.array([0, 1]))[0]
    assert [int(bad.guard[t].skipped) for t in LEARNS] == [1, 1] and (
        bad.params["b/kernel"] == state.params["b/kernel"]
    ).all()


def test_options_reach_the_model():
    config = OptimConfig()
    losses = [
        toy_step(config, ("one",), options=o)(toy_state(config), (toy_batch(0),), jnp.array([0]))[
            1
        ][0]["loss"]
        for o in ((), (("factor", 0.0),))
    ]
    (at_zero,) = losses[1:]
    noise = losses[0] - np.mean(
        (
            np.asarray(
                Model.apply(toy_params(), {}, toy_batch(0), train=True, key=None, progress=None)[0][
                    "a"
                ]
                - toy_batch(0)["y"]
            )
        )
        ** 2
    )
    np.testing.assert_allclose(
        at_zero, np.mean(np.asarray(toy_batch(0)["y"]) ** 2) + noise, rtol=1e-5
    )


# --------------------------------------------------------------------------------------------------
# Signatures


def task(
    name="pairs", data=types.MappingProxyType({}), fields=types.MappingProxyType({}), **changes
):
    config = {**tiny.task(fields=tiny.fields(**fields), **data), **changes}
    experiment = tiny.experiment(tasks={name: config})
    return Task(name, experiment.tasks[name], experiment.preprocess)


def test_the_signature_is_what_the_devices_see():
    same = [
        task(),
        task("other"),
        task(
            data=dict(
                source=dict(tiny.SHAPES, split="train_b"),
                sampler=dict(name="in_order"),
                reader=dict(threads=1),
            )
        ),
        task(
            fields=dict(
                image=dict(crop=(0.5, 1.0)),
                text=dict(columns="name/de"),
                group_id=dict(column="name/en"),
            )
        ),
    ]
    assert len({t.signature for t in same}) == 1
    others = [
        task(data=dict(batch=8)),
        task(fields=dict(image=dict(size=24))),
        task(fields=dict(text=dict(length=5))),
        task(fields=dict(image=dict(augment=dict(rotate=5.0)))),
        task(fields=dict(group_id=None)),
        task(objectives=dict(align=2.0)),
        task(objectives=dict(align=dict(label_smoothing=0.2))),
        task(objectives=dict(clip=1.0)),
        task(objectives=dict(mine=dict(name="align"))),
        task(microbatches=2),
        task(encode=dict(drop=0.5)),
        task(objectives=dict(align=1.0, clip=1.0)),
    ]
    assert len({t.signature for t in [*others, *same]}) == len(others) + 1


def test_state_between_steps_keeps_tasks_apart(monkeypatch):
    objective = type(task().objectives["align"])
    monkeypatch.setattr(objective, "init_state", lambda self, spec: {"x": jnp.zeros(4)})
    assert task("a").signature != task("b").signature
