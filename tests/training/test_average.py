"""The moving average that evaluation uses: of the weights, and of the batch statistics beside
them."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl import train as run
from jaxvl.config import ConfigError
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
from jaxvl.training.state import GuardState, TrainState, start_averages
from jaxvl.training.step import Part, Update, make_step
from jaxvl.training.weights import load_weights

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
        ema=start_averages(list(config.averages), params, rest),
        teachers={},
        objective_state={},
        guard={"one": GuardState.fresh()},
    )
    return jax.jit(step), state


EVERY_SEVERAL = dict(fast=0.3, slow=0.6, slower=0.9)


@pytest.mark.parametrize("ema", [0.6, EVERY_SEVERAL], ids=["one", "several"])
def test_statistics_are_averaged_like_the_weights(ema):
    """By NumPy, from what the steps logged; one of them is skipped, after which nothing has
    moved."""
    config = OptimConfig(ema=ema, warmup=0, clip_norm=None)
    step, state = toy_step(config)
    decays = EVERY_SEVERAL if ema is EVERY_SEVERAL else {"": 0.6}
    averages = {
        name: {
            "kernel": np.asarray(state.params["kernel"], np.float64),
            "mean": np.asarray(state.model_state["mean"], np.float64),
        }
        for name in decays
    }
    for i in range(8):
        x, y = (jax.random.normal(jax.random.key(i + k), (8, n)) for k, n in ((0, 4), (100, 3)))
        bad = i == 3
        y = jnp.full_like(y, jnp.nan) if bad else y
        batch = {"x": x, "y": y, "position": jnp.arange(8)}
        state, _ = step(state, (batch,), jnp.array([0]))
        logged = {**state.params, **state.model_state}
        for name, average in averages.items():
            decay = min(decays[name], (1 + i) / (10 + i))
            kept = state.ema[name] if name else state.ema
            for path in average:
                if not bad:
                    now = np.asarray(logged[path], np.float64)
                    average[path] = decay * average[path] + (1 - decay) * now
                np.testing.assert_allclose(
                    kept[path], average[path], rtol=1e-5, err_msg=f"{name} {path}, step {i}"
                )
            assert kept.keys() == average.keys(), "what is counted has no average"
    used = "slower" if len(decays) > 1 else ""
    assert config.evaluated == used
    params, rest = state.weights(used)
    assert np.abs(rest["mean"] - state.model_state["mean"]).max() > 1e-3
    np.testing.assert_allclose(params["kernel"], averages[used]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(rest["mean"], averages[used]["mean"], rtol=1e-5)
    assert rest["calls"] == state.model_state["calls"] == 7
    encode = types.SimpleNamespace(with_weights=lambda weights: weights)
    chosen = types.SimpleNamespace(encode=encode, experiment=types.SimpleNamespace(optim=config))
    shown = Run.encoders(chosen, state)
    np.testing.assert_array_equal(shown[1]["mean"], rest["mean"])
    plain = Run.encoders(
        types.SimpleNamespace(
            encode=encode,
            experiment=types.SimpleNamespace(
                optim=dataclasses.replace(config, evaluate="parameters")
            ),
        ),
        state,
    )
    assert plain[0] is state.params and plain[1] is state.model_state


def test_which_average_is_used():
    assert OptimConfig().evaluated is None and OptimConfig().main_average is None
    assert OptimConfig(ema=0.9).evaluated == ""
    several = dict(a=0.99, b=0.999, c=0.9)
    assert OptimConfig(ema=several).evaluated == "b"
    assert OptimConfig(ema=several, evaluate="c").evaluated == "c"
    live = OptimConfig(ema=several, evaluate="parameters")
    assert live.evaluated is None and live.main_average == "b", "a teacher's is an average still"
    for wrong, said in (
        (
            dict(ema=several, evaluate="d"),
            "evaluate: 'd' must be None or one of parameters, a, b, c",
        ),
        (dict(evaluate="a"), "evaluate: 'a' must be None or one of parameters"),
        (dict(ema=dict(a=1.0)), r"ema\.a: 1\.0 must be in \(0, 1\)"),
        (dict(ema=dict(parameters=0.9)), "may not be the name of an average"),
        (dict(ema={}), "ema: has no average"),
    ):
        with pytest.raises(ConfigError, match=said):
            OptimConfig(**wrong)


def test_averages_lie_as_the_parameters():
    experiment = tiny.experiment(
        optim=dict(warmup=0, ema=dict(fast=0.9, slow=0.99)), mesh=dict(data=1, fsdp=-1)
    )
    mesh = make_mesh(experiment.mesh)
    tokenizer = task_tokenizer(experiment, open_sources(experiment, lambda text: None))
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer)
        _, shapes, shardings = fresh_state(experiment, model, mesh)
    assert shapes.ema.keys() == {"fast", "slow"}
    for name in shapes.ema:
        assert shapes.ema[name].keys() == shapes.params.keys()
        for path in shapes.params:
            assert shardings.ema[name][path] == shardings.params[path], path
    assert any(not place.is_fully_replicated for place in shardings.params.values())


@pytest.mark.usefixtures("one_device", "programs_kept")
def test_a_finished_run_gives_any_of_its_averages(tmp_path):
    """A run that goes on halfway has the same, and each command takes the one that it is told."""
    options = dict(optim=dict(lr=1e-2, warmup=2, ema=dict(fast=0.2, slow=0.9)))
    run.train(tiny.experiment(**options), tmp_path / "whole")
    state = tiny.saved_state(tmp_path / "whole", 6)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "3", tmp_path / "again/checkpoints/3")
    run.train(tiny.experiment(**options), tmp_path / "again")
    tiny.assert_same_state(tmp_path / "whole", tmp_path / "again", 6)
    path = "log_scale"
    values = {name: float(state["ema"][name][path]) for name in ("fast", "slow")}
    values["parameters"] = float(state["params"][path])
    assert len(set(values.values())) == 3
    assert float(restore_weights(tmp_path / "whole").params[path]) == values["slow"]
    for name, value in values.items():
        saved = restore_weights(tmp_path / "whole", None, {"optim.evaluate": name})
        assert float(saved.params[path]) == value
        bundle = load_weights(tmp_path / "whole", weights=name)
        assert float(bundle.arrays[path]) == value


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
