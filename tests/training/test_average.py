"""The moving average that evaluation uses: of the weights, and of the batch statistics beside
them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model, fresh_state
from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.experiment import StartConfig
from jaxvl.training.forward import Forward
from jaxvl.training.guard import GuardConfig, Watch
from jaxvl.training.inputs import open_sources, task_tokenizer
from jaxvl.training.optim import OptimConfig, optimiser
from jaxvl.training.restore import restore_weights
from jaxvl.training.run import Run
from jaxvl.training.start import initial_weights
from jaxvl.training.state import GuardState, TrainState, start_average
from jaxvl.training.step import Part, Update, make_step

AXES = {"kernel": ("embed", "mlp")}


class Model:
    """Linear, of what is normalised with a running mean."""

    @staticmethod
    def apply(params, rest, batch, *, train, key, progress):
        mean = 0.9 * rest["mean"] + 0.1 * batch["x"].mean(0)
        return {"y": (batch["x"] - mean) @ params["kernel"]}, {
            "mean": mean,
            "calls": rest["calls"] + 1,
        }


def toy_step(config):
    tx, trained = optimiser(config, AXES)

    def loss(outputs, batch, states, context):
        return jnp.square(outputs["y"] - batch["y"]).mean(), ({}, states)

    task = types.SimpleNamespace(
        name="one",
        config=types.SimpleNamespace(microbatches=1),
        objectives={},
        loss=loss,
        hooks={},
        inputs=lambda batch, key: batch,
        per_row=lambda outputs, inputs: outputs,
    )
    update = Update(tx, trained, lambda step: 0.1, config, GuardConfig())
    step = make_step([Part(Forward(task, Model), 1.0, frozenset(AXES))], update, ["one"])
    params = {"kernel": jnp.ones((4, 3))}
    rest = {"mean": jnp.full(4, 0.3), "calls": jnp.int32(0)}
    state = TrainState(
        step=jnp.int32(0),
        rng=jax.random.key_data(jax.random.key(0)),
        params=params,
        model_state=rest,
        opt_state=tx.init(params),
        ema=start_average(params, rest),
        teachers={},
        objective_state={},
        guard={"one": GuardState.fresh()},
    )
    return jax.jit(step), state


def test_statistics_are_averaged_like_the_weights():
    """By NumPy, from what the steps logged; one of them is skipped, after which nothing has
    moved."""
    step, state = toy_step(OptimConfig(ema=0.6, warmup=0, clip_norm=None))
    average = {
        "kernel": np.asarray(state.params["kernel"], np.float64),
        "mean": np.asarray(state.model_state["mean"], np.float64),
    }
    for i in range(8):
        x, y = (jax.random.normal(jax.random.key(i + k), (8, n)) for k, n in ((0, 4), (100, 3)))
        bad = i == 3
        y = jnp.full_like(y, jnp.nan) if bad else y
        batch = {"x": x, "y": y, "position": jnp.arange(8)}
        state, _ = step(state, (batch,), jnp.array([0]))
        decay = min(0.6, (1 + i) / (10 + i))
        logged = {**state.params, **state.model_state}
        for path in average:
            average[path] = (
                average[path]
                if bad
                else decay * average[path] + (1 - decay) * np.asarray(logged[path], np.float64)
            )
            np.testing.assert_allclose(
                state.ema[path], average[path], rtol=1e-5, err_msg=f"{path}, step {i}"
            )
    assert state.ema.keys() == average.keys(), "what is counted has no average"
    assert np.abs(state.ema["mean"] - state.model_state["mean"]).max() > 1e-3
    np.testing.assert_array_equal(state.eval_params["kernel"], state.ema["kernel"])
    np.testing.assert_array_equal(state.eval_model_state["mean"], state.ema["mean"])
    assert state.eval_model_state["calls"] == state.model_state["calls"] == 7
    encode = types.SimpleNamespace(with_weights=lambda weights: weights)
    used = Run.encoders(types.SimpleNamespace(encode=encode), state)
    np.testing.assert_array_equal(used[1]["mean"], state.ema["mean"])
    plain = dataclasses.replace(state, ema=None)
    assert plain.eval_model_state is plain.model_state and plain.eval_params is plain.params


NET = dict(name="efficientnet", stem=8, stages=("fused_r1_k3_s2_e1_o8",), drop_connect=0.0)
TEXT = dict(name="text_transformer", variant="Ti", width=16, depth=1, heads=2, pool="mean")


def as_it_was(state):
    """A state by the names that its parts had before form 2."""
    parts = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    del parts["teachers"]
    parts["rest"] = parts.pop("model_state")
    parts["aux"] = {slot: () for slot in parts.pop("objective_state")}
    return parts


@pytest.mark.parametrize("older", [False, True], ids=["with statistics", "of weights alone"])
def test_a_checkpoint_gives_the_averaged_statistics(tmp_path, older):
    """One of before statistics were averaged is read as well; the live ones stand in for them."""
    experiment = tiny.experiment(
        model=dict(name="dual_encoder", image=NET, text=TEXT, embed_dim=16)
    )
    tokenizer = task_tokenizer(experiment, open_sources(experiment, lambda text: None))
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer)
        fresh, _, shardings = fresh_state(experiment, model, mesh)
        state = jax.jit(fresh, out_shardings=shardings)()
    assert model.model_state and model.model_state.keys() < state.ema.keys()
    ema = {p: v + 1 for p, v in state.ema.items()}
    run = types.SimpleNamespace(
        experiment=experiment,
        tokenizer=tokenizer,
        preprocess=experiment.preprocess,
        feeds={},
        figures=types.SimpleNamespace(latest={}),
        skipped_records=dict,
        watch=Watch(),
    )
    frame = Run.frame(run)
    if older:
        ema = {p: v for p, v in ema.items() if p in state.params}
        del frame["form"]
    state = dataclasses.replace(state, ema=ema)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, as_it_was(state) if older else state, frame)
    checkpoints.finish()
    checkpoints.close()
    saved = restore_weights(tmp_path)
    for path, value in state.model_state.items():
        np.testing.assert_allclose(
            saved.model_state[path], value if older else value + 1, err_msg=path
        )
    for path, value in state.params.items():
        np.testing.assert_allclose(saved.params[path], value + 1, err_msg=path)
    # A run that starts from these weights averages both from there on.
    with jax.set_mesh(mesh):
        ours = dataclasses.replace(experiment, start=(StartConfig(str(tmp_path)),))
        begun = initial_weights(ours).put_into(state, ours, model, shardings)
    for path, value in {**saved.params, **saved.model_state}.items():
        np.testing.assert_array_equal(begun.ema[path], value, err_msg=path)
