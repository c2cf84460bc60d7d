"""Heads that a config adds: values and slopes against float64, what they are named, meshes, parts
of a batch, clear errors."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from small_models import ALIGN, DUAL, INPUTS, batch_of, model_of, with_options

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS, MODELS
from jaxvl.models.base import Encoded
from jaxvl.models.heads import Head, HeadConfig, Heads
from jaxvl.sharding import MeshConfig, make_mesh, param_shardings

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B, D = 6, 5
LABEL = np.array([0, 2, 1, -1, 2, 0])


def unit64(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def batch_norm64(x, scale, bias):
    mean = x.mean(0)
    return (x - mean) / np.sqrt(x.var(0) + 1e-5) * scale + bias


def projection64(p, x):
    x = batch_norm64(x @ p["linears/0/kernel"], p["norms/0/scale"], p["norms/0/bias"])
    return unit64(np.maximum(x, 0) @ p["linears/1/kernel"] + p["linears/1/bias"])


def simsiam64(p, x):
    x = batch_norm64(x @ p["linears/0/kernel"], p["norms/0/scale"], p["norms/0/bias"])
    x = np.maximum(x, 0) @ p["linears/1/kernel"]
    return batch_norm64(x, p["norms/1/scale"], p["norms/1/bias"])


def predictor64(p, x):
    x = batch_norm64(x @ p["linears/0/kernel"], p["norms/0/scale"], p["norms/0/bias"])
    return np.maximum(x, 0) @ p["linears/1/kernel"] + p["linears/1/bias"]


def arcface64(p, x, margin=0.5, scale=8.0):
    """Equation 3 with angles; the official code's line beyond pi."""
    kernel = p["linear/kernel"]
    cosine = unit64(x) @ (kernel / np.sqrt((kernel**2).sum(0)))
    out = scale * cosine
    for row, label in enumerate(LABEL):
        if label >= 0:
            angle = np.arccos(cosine[row, label]) + margin
            beyond = cosine[row, label] - margin * math.sin(margin)
            out[row, label] = scale * (np.cos(angle) if angle < math.pi else beyond)
    return out


def linear64(p, x):
    return x @ p["linear/kernel"] + p["linear/bias"]


def prototypes64(p, x):
    return unit64(x) @ unit64(p["rows"]).T


def null64(p, x):
    return np.broadcast_to(unit64(p["vector"]), (len(x), len(p["vector"])))


CASES = {
    "projection": (
        dict(name="projection", dim=4, layers=2, hidden=7, norm="batch"),
        projection64,
    ),
    "simsiam": (
        dict(
            name="projection",
            dim=4,
            layers=2,
            hidden=7,
            norm="batch",
            last_norm=True,
            normalize=False,
        ),
        simsiam64,
    ),
    "predictor": (dict(name="predictor", hidden=7), predictor64),
    "arcface": (dict(name="classifier", classes=3, margin=0.5, scale=8.0), arcface64),
    "linear": (dict(name="classifier", classes=3), linear64),
    "prototypes": (dict(name="prototypes", count=7), prototypes64),
    "null": (dict(name="null_vector"), null64),
}


def built(node, reads="image"):
    """A head alone: its graph, and float32 parameters and state by path, none of them 0."""
    module = choose(HEADS, dict(node, reads=reads), "head").build(
        dict(image=D), nnx.Rngs(params=0), jnp.float32
    )
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    rng = np.random.default_rng(3)
    moved = jax.tree.map(lambda v: v + 0.1 * rng.normal(size=v.shape).astype(np.float32), params)
    return graph, moved, rest


def by_path(state):
    flat = {"/".join(map(str, k)): np.float64(v[...]) for k, v in nnx.to_flat_state(state)}
    return {path.removeprefix("perceptron/"): value for path, value in flat.items()}


@pytest.mark.parametrize("node, reference", CASES.values(), ids=CASES)
def test_values_and_slopes_are_those_of_float64(node, reference):
    graph, params, rest = built(node)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, D)).astype(np.float32)
    if node.get("margin"):  # one row lies opposite its class: the angle and the margin pass pi
        x[1] = -params["linear"]["kernel"][...][:, LABEL[1]] + 0.02 * x[1]
    out = reference(by_path(params), np.float64(x))
    weight = rng.normal(size=out.shape).astype(np.float32)

    def loss(params, x):
        head = nnx.merge(graph, params, rest, copy=True)
        found = head(
            {"image": Encoded(x, x[:, None])},
            {"class_label": jnp.asarray(LABEL)},
            train=True,
            key=None,
            progress=None,
        )
        return (weight * found[""]).sum(), found

    slopes, found = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
    assert set(found) == {""} and found[""].dtype == jnp.float32
    np.testing.assert_allclose(found[""], out, atol=2e-5)

    def loss64(params, x):
        return (np.float64(weight) * reference(params, x)).sum()

    flat = by_path(params)
    step = 1e-6
    slope = dict(by_path(slopes[0]), x=np.float64(slopes[1]))
    for path, value in dict(flat, x=np.float64(x)).items():
        direction = rng.normal(size=value.shape)
        ends = []
        for sign in (1, -1):
            moved = dict(flat, x=np.float64(x))
            moved[path] = value + sign * step * direction
            ends.append(loss64(moved, moved["x"]))
        expected = (ends[0] - ends[1]) / (2 * step)
        found_slope = (slope[path] * direction).sum()
        np.testing.assert_allclose(found_slope, expected, rtol=2e-4, atol=2e-4, err_msg=path)


def test_a_learned_scale_is_one_number_with_a_bound():
    graph, params, rest = built(dict(name="learned_scale", init=4.0, most=5.0))
    x = jnp.ones((B, D))

    def scale(value):
        head = nnx.merge(graph, jax.tree.map(lambda _: value, params), rest, copy=True)
        options = dict(train=True, key=None, progress=None)
        return head({"image": Encoded(x, x[:, None])}, {}, **options)[""]

    assert abs(by_path(params)["log_scale"] - math.log(4.0)) < 0.5  # `built` moves it
    assert scale(jnp.float32(1.0)) == 1.0
    assert scale(jnp.float32(3.0)) == pytest.approx(math.log(5.0))
    assert jax.grad(scale)(jnp.float32(1.0)) == 1.0
    rises = jax.grad(lambda v: -scale(v))(jnp.float32(3.0))
    assert rises == 0.0  # what would raise it further does not pass
    with pytest.raises(ConfigError, match="most: 5.0 must be >= init 10.0"):
        choose(HEADS, dict(name="learned_scale", reads="image", most=5.0), "head")


def test_margin_is_for_training_alone():
    graph, params, rest = built(CASES["arcface"][0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, D)), jnp.float32)
    head = nnx.merge(graph, params, rest, copy=True)
    options = dict(key=None, progress=None)
    out = head({"image": Encoded(x, x[:, None])}, {}, train=False, **options)[""]
    kernel = by_path(params)["linear/kernel"]
    np.testing.assert_allclose(
        out, 8 * unit64(np.float64(x)) @ (kernel / np.sqrt((kernel**2).sum(0))), atol=2e-5
    )
    with pytest.raises(
        ValueError, match="label: 'class_label' is not in the batch; a margin needs"
    ):
        head({"image": Encoded(x, x[:, None])}, {}, train=True, **options)


@pytest.mark.parametrize("progress, moves", [(0.2, False), (0.7, True), (None, True)])
def test_prototypes_stand_still_at_first(progress, moves):
    graph, params, rest = built(dict(name="prototypes", count=4, freeze_share=0.5))
    x = jnp.ones((B, D))

    def loss(params, progress):
        head = nnx.merge(graph, params, rest, copy=True)
        options = dict(train=True, key=None, progress=progress)
        return head({"image": Encoded(x, x[:, None])}, {}, **options)[""][:, 0].sum()

    slope = jax.grad(loss)(params, None if progress is None else jnp.float32(progress))
    assert np.any(slope["rows"][...]) == moves


@dataclasses.dataclass(frozen=True)
class MatchConfig(HeadConfig):
    """A head of one's own: it reads two inputs at once, and an entry of the batch."""

    together: ClassVar[bool] = True

    @property
    def batch_keys(self):
        return ("negative",)

    def build(self, inputs, rngs, dtype=jnp.float32):
        return Match()


class Match(Head):
    def __call__(self, encoded, batch, *, train, key, progress):
        image, text = (encoded[name].tokens.mean(1) for name in ("image", "text"))
        return {
            "right": (image * text).sum(1),
            "wrong": (image * text[batch["negative"]]).sum(1),
        }


def test_a_head_that_reads_all_at_once_waits_for_all():
    heads = Heads({"match": MatchConfig(("image", "text"))}, {"image": D, "text": D})
    heads.check()
    modules = heads.build(nnx.Rngs(params=0), jnp.float32)
    rng = np.random.default_rng(0)
    tokens = {name: jnp.asarray(rng.normal(size=(B, 3, D))) for name in ("image", "text")}
    encoded = {name: Encoded(x[:, 0], x) for name, x in tokens.items()}
    negative = jnp.roll(jnp.arange(B), 1)
    options = dict(train=True, key=jax.random.key(0), progress=None)
    out = heads.run(modules, encoded, {"negative": negative}, **options)
    image, text = (np.asarray(tokens[name]).mean(1) for name in ("image", "text"))
    np.testing.assert_allclose(out["match/right"], (image * text).sum(1), rtol=1e-5)
    np.testing.assert_allclose(out["match/wrong"], (image * text[negative]).sum(1), rtol=1e-5)
    assert heads.run(modules, encoded, {}, **options) == {}
    image_alone = {"image": encoded["image"]}
    assert heads.run(modules, image_alone, {"negative": negative}, **options) == {}


# --------------------------------------------------------------------------------------------------
# In a model

SMALL = with_options(DUAL, image__depth=1, text__depth=1)
HEADED = dict(
    SMALL,
    views=dict(image_2="image"),
    heads=dict(
        # Read before they are defined: a config's order does not matter.
        predictor=dict(name="predictor", reads=("projector/image", "projector/image_2"), hidden=16),
        projector=dict(
            name="projection",
            reads=("image", "image_2"),
            dim=8,
            layers=2,
            hidden=16,
            norm="batch",
            normalize=False,
        ),
        clean=dict(name="projection", reads="text", dim=8),
        identity=dict(name="classifier", reads="clean", classes=4, margin=0.3, scale=4.0),
        swav=dict(name="prototypes", reads=("projector/image",), count=8),
        null=dict(name="null_vector", reads="text", dim=16),
    ),
)
OUTPUTS = {
    "image",
    "image_2",
    "text",
    "log_scale",
    "predictor/image",
    "predictor/image_2",
    "projector/image",
    "projector/image_2",
    "clean",
    "logits/identity",
    "swav/image",
    "null",
}


def headed_batch(size):
    batch = batch_of(size)
    label = jnp.arange(size) % 4
    return dict(batch, image_2=jnp.flip(batch["image"], 2), class_label=label)


@functools.cache
def headed():
    model, _ = model_of(HEADED)
    return (model, *model.init(jax.random.key(0)))


def loss_of(model, rest, batch):
    def loss(params):
        out, after = model.apply(
            params, rest, batch, train=True, key=jax.random.key(1), progress=jnp.float32(0.5)
        )
        rows = [jnp.sin(3 * v).sum() for name, v in out.items() if v.ndim]
        return sum(rows) / len(batch["text"]), (out, after)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


def test_model_with_heads():
    model, params, rest = headed()
    plain, _ = model_of(SMALL)
    assert {p: s for p, s in model.params.items() if not p.startswith("heads/")} == plain.params
    fresh, _ = plain.init(jax.random.key(0))
    for path, value in fresh.items():  # the towers begin as without heads
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    assert {p.split("/")[1] for p in model.params if p.startswith("heads/")} == set(HEADED["heads"])
    assert {p for p in rest if "projector" in p} == {
        f"heads/projector/perceptron/norms/0/{name}" for name in ("mean", "var")
    }

    batch = headed_batch(8)
    (value, (out, after)), slope = loss_of(model, rest, batch)(params)
    assert set(out) == OUTPUTS
    assert all(v.shape[0] == 8 for name, v in out.items() if name != "log_scale")
    unused = {p for p in slope if not np.any(slope[p])}
    assert all("bias" in p or p == "log_scale" for p in unused), unused
    assert all(not np.array_equal(after[p], rest[p]) for p in rest)

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = param_shardings(model.axes, {p: v.shape for p, v in params.items()}, mesh)
        assert shardings["heads/swav/rows"].spec == PartitionSpec("tensor", "fsdp")
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        (value_8, (out_8, after_8)), slope_8 = loss_of(model, rest, batch)(placed)
    np.testing.assert_allclose(value_8, value, atol=2e-5)
    for name in OUTPUTS:
        np.testing.assert_allclose(out_8[name], out[name], atol=2e-5, err_msg=name)
    for path in rest:
        np.testing.assert_allclose(after_8[path], after[path], atol=1e-5, err_msg=path)
    largest = float(np.median([np.abs(v).max() for v in slope.values()]))
    for path in slope:
        np.testing.assert_allclose(slope_8[path], slope[path], atol=1e-4 * largest, err_msg=path)


def test_inputs_one_by_one_and_rows_in_parts_give_the_same():
    """In evaluation, where batch normalisation takes no statistics of the rows."""
    model, params, rest = headed()
    batch = {k: v for k, v in headed_batch(4).items() if k != "class_label"}
    apply = quick_jit(model.apply, static_argnames=("method", "train"))
    out, _ = apply(params, rest, batch)
    parts = [apply(params, rest, {k: v[i : i + 2] for k, v in batch.items()})[0] for i in (0, 2)]
    for name in OUTPUTS - {"log_scale"}:
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, out[name], atol=1e-5, err_msg=name)
    one_by_one = {
        "image": ("image", "projector/image", "predictor/image", "swav/image"),
        "image_2": ("image_2", "projector/image_2", "predictor/image_2"),
        "text": ("text", "clean", "logits/identity", "null"),
    }
    head = quick_jit(
        lambda output, name, x: model.apply(params, rest, output, name, x, method="head")[0],
        static_argnums=(0, 1),
    )
    for name, outputs in one_by_one.items():
        for output in outputs:
            alone = head(output, name, batch[name])
            np.testing.assert_allclose(alone, out[output], atol=1e-5, err_msg=output)
    with pytest.raises(KeyError, match="'clean' is not an output of 'image' alone"):
        head("clean", "image", batch["image"])
    # A view goes through its tower.
    np.testing.assert_allclose(head("image_2", "image_2", batch["image"]), out["image"], atol=1e-6)


def test_capabilities_know_class_heads():
    config = model_of(HEADED)[1]
    assert config.capabilities(INPUTS).classes == {"identity": 4}
    assert model_of(DUAL)[1].capabilities().classes == {}


def wrong(**change):
    return dict(DUAL, **change)


P = "projection"
WRONG = {
    "unknown head": (
        wrong(heads=dict(a=dict(name="projektion", reads="image"))),
        r"heads\.a\.name: 'projektion' is not a known head.*did you mean 'projection'",
    ),
    "reads nothing": (
        wrong(heads=dict(a=dict(name=P, reads="imgae"))),
        r"heads\.a\.reads: 'imgae' is not there.*did you mean 'image'.*there are: image, text",
    ),
    "circle": (
        wrong(heads=dict(a=dict(name=P, reads="b"), b=dict(name=P, reads="a"))),
        r"heads\.a\.reads: 'b' depends on the head itself",
    ),
    "twice": (
        wrong(
            heads=dict(p=dict(name=P, reads=("text",)), a=dict(name=P, reads=("text", "p/text")))
        ),
        r"heads\.a\.reads: \('text', 'p/text'\) gives two outputs of one name",
    ),
    "label of an input": (
        wrong(heads=dict(image=dict(name=P, reads="image"))),
        r"heads\.image: is an output of the model already",
    ),
    "label": (
        wrong(heads={"a/b": dict(name=P, reads="image")}),
        r"heads\.a/b: must be letters, digits and underscores",
    ),
    "widths": (
        wrong(heads=dict(a=dict(name=P, reads=("image", "text")))),
        r"heads\.a\.reads: 'image' of width 32, 'text' of width 24 must be of one width",
    ),
    "view of no tower": (
        wrong(views=dict(image_2="picture")),
        r"views\.image_2: 'picture' must be one of image, text",
    ),
    "view named like a tower": (
        wrong(views=dict(text="image")),
        r"views\.text: is an input of the model already",
    ),
    "norm": (
        wrong(heads=dict(a=dict(name=P, reads="image", last_norm=True))),
        r"heads\.a\.last_norm: True needs a norm",
    ),
    "lock of earlier versions": (dict(ALIGN, lock="image"), r"lock: unknown key"),
}


@pytest.mark.parametrize("node, message", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        choose(MODELS, node, "model")
