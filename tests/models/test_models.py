"""What every model promises: named outputs, axes, layouts, dtypes, determinism, locking, clear
errors."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_models import (
    ALIGN,
    DUAL,
    INPUTS,
    MODELS_SMALL,
    SMALL_BERT,
    SMALL_NET,
    SMALL_TEXT,
    SMALL_VIT,
    batch_of,
    model_of,
    with_options,
)

from jaxvl.config import ConfigError, choose
from jaxvl.models import MODELS, InputSpec, presets
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.sharding import MeshConfig, make_mesh, param_shardings

RANDOM_TEXT = dict(text__dropout=0.2)


@functools.cache
def _setup(text, inputs, options):
    model, _ = model_of(json.loads(text), inputs, **dict(options))
    return (model, *model.init(jax.random.key(0)))


def setup(node, inputs=INPUTS, **kw):
    """(Model, params, model_state); kept, as tests ask for the same again."""
    return _setup(json.dumps(node), inputs, tuple(kw.items()))


def applied(model):
    """`apply`, compiled as one program."""
    return jax.jit(model.apply, static_argnames=("method", "train"))


def gradients(model, params, rest, batch, **kw):
    """Of a loss to which every output contributes."""

    def loss(p):
        out, _ = model.apply(p, rest, batch, **kw)
        return jnp.sum(jnp.exp(out["log_scale"]) * jnp.sin(3 * out["image"] @ out["text"].T)) + sum(
            out.get(k, 0.0) for k in ["logit_bias"]
        )

    return jax.jit(jax.value_and_grad(loss))(params)


def close(a, b, tol=1e-5):
    """Equal to `tol` of each array's largest entry; of the typical array's where an array is
    (nearly) zero, as a bias before a norm has it."""
    largest = [float(np.abs(x).max()) for x in jax.tree.leaves(a)]
    typical = float(np.median(largest))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=0, atol=tol * max(typical, float(np.abs(x).max()))
        ),
        a,
        b,
    )


@pytest.mark.parametrize("node", MODELS_SMALL.values(), ids=MODELS_SMALL)
def test_outputs(node):
    model, params, rest = setup(node)
    batch = batch_of(4)
    out, _ = applied(model)(params, rest, batch)
    assert set(out) == {"image", "text", "log_scale"}
    for side in ("image", "text"):
        assert out[side].dtype == jnp.float32 and out[side].shape[0] == 4
        np.testing.assert_allclose(np.linalg.norm(out[side], axis=1), 1, rtol=1e-6)
        alone, _ = applied(model)(params, rest, batch[side], method=f"encode_{side}")
        np.testing.assert_allclose(alone, out[side], atol=1e-6)
    assert out["log_scale"].shape == ()


@pytest.mark.parametrize("image, text", [(SMALL_VIT, SMALL_BERT), (SMALL_NET, SMALL_TEXT)])
def test_any_tower_with_any_model(image, text):
    for node in (
        dict(name="align", image=image, text=text),
        dict(name="dual_encoder", image=image, text=text, embed_dim=8),
    ):
        model, params, rest = setup(node)
        out, _ = applied(model)(params, rest, batch_of(2))
        assert out["image"].shape == out["text"].shape


def test_temperatures():
    batch = batch_of(2)

    def numbers(node):
        """The outputs that are one number; the towers are not compiled."""
        model, params, rest = setup(node)
        given = lambda p: {k: v for k, v in model.apply(p, rest, batch)[0].items() if v.ndim == 0}
        return jax.jit(given)(params)

    np.testing.assert_allclose(np.exp(-numbers(ALIGN)["log_scale"]), 0.1, rtol=1e-6)
    out = numbers(with_options(DUAL, init_scale=10.0, init_bias=-10.0))
    np.testing.assert_allclose([np.exp(out["log_scale"]), out["logit_bias"]], [10, -10], rtol=1e-6)


def test_bound_lets_back_only():
    for x, sign, passes in ((1.0, 1, 1), (1.0, -1, 1), (5.0, 1, 1), (5.0, -1, 0)):
        value, gradient = jax.value_and_grad(
            lambda x, sign=sign: sign * clip_with_gradient(x, 4.0)
        )(x)
        assert (value, gradient) == (sign * min(x, 4.0), sign * passes)


FULL = {
    "align_b0": (presets.align("b0", "tiny"), InputSpec(64, 16, 100)),
    "align_pooler": (
        with_options(presets.align("v2_s", "mini"), text__pool="pooler", embed_dim=64),
        InputSpec(64, 16, 100),
    ),
    "align_group": (
        with_options(presets.align("b0", "tiny"), image__norm="group", image__head=True),
        InputSpec(64, 16, 100),
    ),
    "clip": (presets.clip("B/32"), InputSpec(224, 77, 100, eos_id=2)),
    "siglip": (presets.siglip("So400m/14"), InputSpec(224, 64, 100)),
    "qk_norm": (
        with_options(DUAL, image__qk_norm=True, text__pool="mean", image__positions="sincos"),
        INPUTS,
    ),
}


@pytest.mark.parametrize("node, inputs", FULL.values(), ids=FULL)
def test_every_parameter_has_axes(node, inputs):
    model, _ = model_of(node, inputs)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = param_shardings(model.axes, {p: v.shape for p, v in model.params.items()}, mesh)
    assert set(shardings) == set(model.params)
    big = [
        p for p, v in model.params.items() if v.size > 2**20 and shardings[p].is_fully_replicated
    ]
    assert not big, big


@pytest.mark.parametrize("node", MODELS_SMALL.values(), ids=MODELS_SMALL)
@pytest.mark.parametrize(
    "mesh",
    [
        # All axes at once hold what fewer do.
        pytest.param(dict(data=2, fsdp=4), marks=pytest.mark.slow),
        dict(data=2, fsdp=2, tensor=2),
    ],
    ids=str,
)
def test_mesh_equals_one_device(node, mesh):
    model, params, rest = setup(node)
    batch = batch_of(16)
    one = gradients(model, params, rest, batch, train=True)
    mesh = make_mesh(MeshConfig(**mesh))
    with jax.set_mesh(mesh):
        placed = jax.device_put(
            params, param_shardings(model.axes, {p: v.shape for p, v in params.items()}, mesh)
        )
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        close(
            one, gradients(model, placed, rest, batch, train=True), 1e-5 if node is DUAL else 1e-4
        )


@pytest.mark.parametrize("node", [DUAL], ids=["dual"])  # the stack is the same code in every tower
@pytest.mark.parametrize(
    "options",
    [  # of two models: the second of the first pair is scanned and keeps nothing
        (dict(scan=False), dict(remat="full")),
        pytest.param(({}, dict(remat="full")), marks=pytest.mark.slow),
        pytest.param(({}, dict(scan=False, remat="dots")), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_scan_and_remat_change_nothing(node, options):
    node = with_options(node, image__drop_path=0.2, **RANDOM_TEXT)
    one, two = (
        with_options(
            node, **{f"{side}__{k}": v for side in ("image", "text") for k, v in o.items()}
        )
        for o in options
    )
    model, params, rest = setup(one)
    other, _ = model_of(two)
    assert other.params == model.params
    kw = dict(train=True, key=jax.random.key(3))
    close(
        gradients(model, params, rest, batch_of(4), **kw),
        gradients(other, params, rest, batch_of(4), **kw),
    )


@pytest.mark.parametrize("node", MODELS_SMALL.values(), ids=MODELS_SMALL)
def test_bfloat16_computes_low_and_keeps_float32(node):
    model, params, rest = setup(node, dtype="bfloat16")
    assert {v.dtype for v in (*params.values(), *rest.values())} == {jnp.dtype("float32")}
    wide, _ = model_of(node)
    batch = batch_of(4)
    low, high = (jax.jit(m.apply)(params, rest, batch)[0] for m in (model, wide))
    for side in ("image", "text"):
        assert low[side].dtype == jnp.float32
        difference = np.abs(low[side] - high[side]).max()
        assert 1e-6 < difference < 0.05, difference
    _, gradient = jax.eval_shape(lambda p: gradients(model, p, rest, batch), params)
    assert {g.dtype for g in gradient.values()} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(lambda p: model.apply(p, rest, batch)[0]["image"])(params))
    assert "bf16" in jaxpr


TEXTS = {
    "bert_cls": dict(SMALL_BERT),
    "bert_mean": dict(SMALL_BERT, pool="mean"),
    "causal_eos": dict(SMALL_TEXT, causal=True, pool="eos"),
    "causal_last": dict(SMALL_TEXT, causal=True, pool="last"),
    "eos": dict(SMALL_TEXT, pool="eos"),
    "mean": dict(SMALL_TEXT, pool="mean"),
    "map": dict(SMALL_TEXT, pool="map"),
    "cls": dict(SMALL_TEXT, pool="cls"),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_padding_changes_nothing(text):
    """A text gives the same embedding however much padding follows, and whatever stands beside it
    in the batch."""
    model, params, rest = setup(
        dict(name="dual_encoder", image=SMALL_VIT, text=dict(text, positions=16), embed_dim=16)
    )
    tokens = np.array([[5, 9, 3, 7, 1]])
    padded = np.pad(tokens, ((0, 0), (0, INPUTS.text_length - 5)))
    beside = np.full_like(padded, 8)
    beside[0, -1] = 1
    other = np.array([[5, 20, 3, 7, 1]])
    encode = lambda t, run=applied(model): np.asarray(run(params, rest, t, method="encode_text")[0])
    np.testing.assert_allclose(
        encode(np.concatenate([beside, padded]))[1:], encode(tokens), atol=2e-6
    )
    assert np.abs(encode(other) - encode(tokens)).max() > 1e-3


def test_padding_with_eos():
    """Tokenizers that pad with EOS: only the first one counts."""
    inputs = InputSpec(32, 12, 50, pad_id=1, eos_id=1)
    model, params, rest = setup(
        dict(
            name="dual_encoder",
            image=SMALL_VIT,
            text=dict(SMALL_TEXT, pool="mean", positions=12),
            embed_dim=16,
        ),
        inputs,
    )
    short = np.array([[5, 9, 1]])
    long = np.array([[5, 9, 1, 1, 1, 1]])
    encode = lambda t, run=applied(model): np.asarray(run(params, rest, t, method="encode_text")[0])
    np.testing.assert_allclose(encode(long), encode(short), atol=2e-6)


def test_causal_sees_no_later_token():
    model, params, rest = setup(with_options(DUAL, text__causal=True, text__pool="eos"))
    a = np.array([[5, 9, 3, 1, 6, 7]])
    b = np.array([[5, 9, 3, 1, 40, 41]])
    encode = lambda t, run=applied(model): np.asarray(run(params, rest, t, method="encode_text")[0])
    np.testing.assert_allclose(encode(a), encode(b), atol=1e-6)


RANDOM = with_options(
    ALIGN, image__drop_connect=0.5, text__dropout=0.3, text__attention_dropout=0.3
)
RANDOM_DUAL = with_options(
    DUAL, image__dropout=0.3, image__drop_path=0.5, text__dropout=0.3, text__drop_path=0.5
)


@pytest.mark.parametrize("node", [RANDOM, RANDOM_DUAL], ids=["align", "dual_encoder"])
def test_randomness_is_a_function_of_the_key(node):
    model, params, rest = setup(node)
    batch = batch_of(8)
    run = jax.jit(lambda key: model.apply(params, rest, batch, train=True, key=key)[0])
    a = run(jax.random.key(1))
    again = run(jax.random.key(1))
    b = run(jax.random.key(2))
    for side in ("image", "text"):
        np.testing.assert_array_equal(a[side], again[side])
        assert np.abs(a[side] - b[side]).max() > 1e-2
    evaluated = [
        applied(model)(params, rest, batch, key=k)[0]["text"] for k in (None, jax.random.key(1))
    ]
    np.testing.assert_array_equal(*evaluated)
    with pytest.raises(ValueError, match="key: None"):
        jax.eval_shape(lambda: model.apply(params, rest, batch, train=True))


@pytest.mark.parametrize(
    "node, side",
    [
        pytest.param(RANDOM, "image", id="align-image"),
        pytest.param(RANDOM, "text", id="align-text", marks=pytest.mark.slow),
        pytest.param(RANDOM_DUAL, "image", id="dual_encoder-image", marks=pytest.mark.slow),
        pytest.param(RANDOM_DUAL, "text", id="dual_encoder-text"),
    ],
)
def test_frozen_encoder_gets_exactly_no_gradient(node, side):
    model, params, rest = setup(node, freeze=rf"^{side}/encoder/")
    _, gradient = gradients(model, params, rest, batch_of(4), train=True, key=jax.random.key(0))
    inside = {p for p in params if p.startswith(f"{side}/encoder/")}
    state = {p for p in rest if p.startswith(f"{side}/encoder/")}
    assert model.frozen == inside | state and inside
    assert all(not np.any(gradient[p]) for p in inside)
    assert all(np.any(gradient[p]) for p in set(params) - inside if "key/bias" not in p)
    _, new = applied(model)(params, rest, batch_of(4), train=True, key=jax.random.key(0))
    for path in rest:
        assert np.array_equal(new[path], rest[path]) == path.startswith(f"{side}/encoder/")


def test_encoder_that_is_frozen_in_part_runs_as_in_training():
    assert setup(DUAL)[0].frozen == frozenset()
    model, params, rest = setup(RANDOM, freeze=r"^image/encoder/.*bias$")
    assert model.frozen == {p for p in params if re.search(r"^image/encoder/.*bias$", p)}
    _, new = applied(model)(params, rest, batch_of(4), train=True, key=jax.random.key(0))
    assert all(not np.array_equal(new[path], rest[path]) for path in rest)


WRONG = {
    "patch larger": (
        with_options(DUAL, image__variant="Ti/64"),
        r"image\.variant: 'Ti/64': the patch of 64 pixels is larger than the image of 32",
    ),
    "patch does not divide": (
        with_options(DUAL, image__variant="Ti/12"),
        r"image\.variant: .*12 pixels must divide the image of 32",
    ),
    "no patch": (
        with_options(DUAL, image__variant="Ti"),
        r"image\.variant: 'Ti' must be a size and a patch side",
    ),
    "size": (
        with_options(DUAL, image__variant="Hu/8"),
        r"image\.variant: 'Hu' is not a known variant.*did you mean 'H'.*known: Ti, S",
    ),
    "heads": (with_options(DUAL, image__heads=5), r"image\.heads: 5 must divide the width of 32"),
    "heads of bert": (
        with_options(ALIGN, text__heads=3),
        r"text\.heads: 3 must divide the width of 32",
    ),
    "variant": (
        with_options(ALIGN, image__variant="b9"),
        r"image\.variant: 'b9' is not a known variant; did you mean 'b\d'",
    ),
    "encoder": (
        with_options(ALIGN, image__name="efficientnets"),
        r"image\.name: 'efficientnets' is not a known image encoder; did you mean 'efficientnet'",
    ),
    "stage": (
        with_options(ALIGN, image__stages=("mbconv_r2",)),
        r"image\.stages: 'mbconv_r2' must be written like",
    ),
    "positions": (
        with_options(ALIGN, text__positions=10),
        r"text\.positions: 10 rows are fewer than the text length of 12",
    ),
    "image too small": (
        with_options(ALIGN, image__stages=("fused_r1_k3_s2_e1_o8",) * 6),
        r"image\.stem_stride: the network divides the side by 128",
    ),
    "widths": (
        with_options(DUAL, projections="none"),
        r"projections: 'none' leaves the image encoder's width of 32",
    ),
    "rate": (with_options(ALIGN, text__dropout=1.0), r"text\.dropout: 1\.0 is a probability"),
    "causal cls": (with_options(DUAL, text__causal=True, text__pool="cls"), r"text\.pool: 'cls'"),
    "temperature": (
        with_options(ALIGN, init_temperature=0.0),
        r"init_temperature: 0\.0 must be > 0",
    ),
    "scale": (with_options(DUAL, max_scale=5.0), r"max_scale: 5\.0 is below init_scale"),
    "unknown key": (
        with_options(ALIGN, image__stem_strid=1),
        r"image\.stem_strid: unknown key; did you mean 'stem_stride'",
    ),
}


@pytest.mark.parametrize("node, message", WRONG.values(), ids=WRONG)
def test_wrong_configs_are_one_sentence(node, message):
    with pytest.raises(ConfigError, match=message):
        choose(MODELS, node, "model").check_inputs(INPUTS)


def test_eos_pooling_needs_an_eos():
    with pytest.raises(ConfigError, match=r"text\.pool: 'eos' needs a tokenizer with an EOS"):
        choose(MODELS, with_options(DUAL, text__pool="eos"), "model").check_inputs(
            InputSpec(32, 12, 50)
        )


def test_bare_names_have_complete_defaults():
    for name in MODELS:
        inputs = InputSpec(224, 64, 49_408, eos_id=1)  # of the vocabulary of open_clip's models
        choose(MODELS, name, "model").check_inputs(inputs)
