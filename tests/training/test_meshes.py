"""Every way to spread eight devices over the axes of the mesh trains as one device does."""

import itertools
import math

import jax
import numpy as np
import pytest
import test_step
import test_teachers
import tiny
from test_teachers import Stepper

from jaxvl.sharding.mesh import AXES

STEPS = 20
NET = dict(name="efficientnet", stem=8, stages=("mbconv_r1_k3_s2_e2_o8_se0.25",), drop_connect=0.0)
BERT = dict(
    name="bert",
    variant="tiny",
    width=16,
    depth=1,
    heads=2,
    positions=8,
    dropout=0.0,
    attention_dropout=0.0,
)
VIT = dict(tiny.VIT, depth=2, heads=4)
TEXT = dict(name="text_transformer", variant="Ti", width=16, depth=2, heads=4, pool="mean")
MODELS = dict(
    align=dict(name="align", image=NET, text=BERT, init_temperature=0.1),
    dual_encoder=dict(name="dual_encoder", image=VIT, text=TEXT, embed_dim=16),
    coca=dict(tiny.COCA, image=VIT, heads=4),
    imp_moe=dict(
        name="imp",
        variant="small",
        width=16,
        depth=2,
        heads=4,
        hidden=32,
        patch=8,
        most_pixels=16,
        most_words=8,
        embed_dim=8,
        projection_hidden=8,
        inputs=("image", "text"),
        pairs=("vision-text",),
        moe=dict(last=1, experts=8, router=dict(name="expert_choice")),
    ),
)
OBJECTIVES = dict(
    align=dict(align=1.0),
    dual_encoder=dict(clip=1.0),
    coca=dict(clip=1.0, captioning=2.0),
    imp_moe=dict(nce=dict(pairs=("vision-text",))),
)
# All shapes of a mesh of eight devices: 20.
SHAPES = [
    shape for shape in itertools.product((1, 2, 4, 8), repeat=len(AXES)) if math.prod(shape) == 8
]
QUICK = {("imp_moe", (1, 2, 2, 2)), ("align", (2, 2, 2, 1))}
EARLY = 4  # steps after which averages are far from the parameters; later the rate is 0
ONE: dict[str, tuple[list[float], dict]] = {}  # system -> losses and early average on one device


def system(name):
    """Changes of the miniature, and the batch that it trains on."""
    if name == "stateful":  # a teacher that follows, a queue, hard negatives
        changes = test_teachers.albef("index")
        return {**changes, "optim": dict(lr=1e-3, warmup=2)}, test_teachers.values()
    tasks = dict(pairs=dict(tiny.task(), objectives=OBJECTIVES[name]))
    return dict(model=MODELS[name], tasks=tasks), test_step.batch()


def trained(name, shape, **optim):
    """Losses of the steps, parameters and average after the early ones, and the last state."""
    changes, batch = system(name)
    if optim:
        changes = {**changes, "optim": optim}
    step = Stepper(math.prod(shape), **changes, mesh=dict(zip(AXES, shape)))
    state = step.first
    found = []
    for i in range(STEPS):
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        found.append(float(metrics["loss"]))
        if i + 1 == EARLY:
            early = jax.device_get((state.params, state.ema))
    return found, early, state


def on_one_device(name):
    if name not in ONE:
        losses, (_, average), _ = trained(name, (1, 1, 1, 1))
        ONE[name] = losses, average
    return ONE[name]


def cases():
    for name in (*MODELS, "stateful"):
        for shape in SHAPES:
            slow = () if (name, shape) in QUICK else (pytest.mark.slow,)
            label = "x".join(str(n) for n in shape)
            yield pytest.param(name, shape, marks=slow, id=f"{name}-{label}")


@pytest.mark.parametrize("name, shape", cases())
def test_twenty_steps_are_those_of_one_device(name, shape):
    """The loss of every step, to 1e-5 of it; and it has changed, so that there was training."""
    wanted, _ = on_one_device(name)
    assert abs(wanted[-1] - wanted[0]) > 1e-2
    found, *_ = trained(name, shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((8, 1, 1, 1), marks=pytest.mark.slow),
        (2, 2, 2, 1),
        pytest.param((4, 2, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_moments_and_averages_split_over_data_change_no_number_and_take_their_part(shape):
    """ZeRO stage 1: losses and average of one device; every matrix's moments and average split by
    `data` as well."""
    losses, average = on_one_device("dual_encoder")
    found, early, state = trained("dual_encoder", shape, lr=1e-3, warmup=2, ema=0.9, zero1=True)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    (adam,) = [s for s in state.opt_state if hasattr(s, "mu")]
    for path, parameter in state.params.items():
        apart = [state.ema[path], adam.mu[path], adam.nu[path]]
        parts = {math.prod(a.sharding.shard_shape(a.shape)) for a in apart}
        lengths = parameter.sharding.shard_shape(parameter.shape)
        whole = math.prod(lengths)
        assert len(parts) == 1, path
        if parameter.ndim > 1 and any(n % shape[0] == 0 for n in lengths):
            assert parts == {whole // shape[0]}, path
        if path.endswith("key/bias"):
            continue  # its gradient is rounding errors only, which Adam divides by their size
        of_parameters, of_averages = (kind[path] for kind in early)
        np.testing.assert_allclose(of_averages, average[path], atol=2e-6, err_msg=path)
        assert np.abs(of_averages - of_parameters).max() > 1e-4 or parameter.ndim < 2, path


@pytest.mark.parametrize(
    "name, shape, remat",
    [
        ("dual_encoder", (2, 4, 1, 1), "full"),
        ("dual_encoder", (2, 4, 1, 1), "chunks"),
        pytest.param("align", (1, 8, 1, 1), None, marks=pytest.mark.slow),
        pytest.param("coca", (2, 2, 2, 1), None, marks=pytest.mark.slow),
        pytest.param("imp_moe", (1, 2, 2, 2), None, marks=pytest.mark.slow),
    ],
)
def test_a_step_in_bfloat16_runs_on_simulated_devices(name, shape, remat):
    """Sums of 16 bits over devices end XLA's process on CPUs; losses are one device's to 8 bits."""
    changes, batch = system(name)
    changes = {**changes, "dtype": "bfloat16"}
    if remat:
        image, text = (dict(part, remat=remat) for part in (VIT, TEXT))
        changes["model"] = dict(MODELS[name], image=image, text=text)
    found = []
    for over in ((1, 1, 1, 1), shape):
        step = Stepper(math.prod(over), **changes, mesh=dict(zip(AXES, over)))
        state = step.first
        for _ in range(2):
            state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    one, several = found
    np.testing.assert_allclose(several, one, rtol=2**-8)
