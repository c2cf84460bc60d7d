"""The fusion head: one layer against float64, its pairs and negatives, parts of a batch, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS, MODELS
from jaxvl.models.base import Encoded, InputSpec
from jaxvl.models.functional import functional

B, T, P, D, E, V, H = 4, 5, 6, 8, 12, 20, 2
K = D // H
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def encoded(seed=0, rows=B):
    """Texts with padding, images, masked texts."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    mask = jnp.arange(T) < jnp.asarray(rng.integers(2, T + 1, (rows, 1)))
    return {
        "text": Encoded(draw(rows, D), draw(rows, T, D), mask),
        "image": Encoded(draw(rows, E), draw(rows, P, E)),
        "masked_text": Encoded(draw(rows, D), draw(rows, T, D), mask),
    }


def head(**options):
    """A head with no parameter at 0."""
    node = dict(name="fusion", depth=1, heads=H, hidden=10, **options)
    module = choose(HEADS, node, "head").build(
        dict(text=D, image=E, masked_text=D), nnx.Rngs(params=0), jnp.float32
    )
    graph, params = nnx.split(module)
    rng = np.random.default_rng(3)
    moved = jax.tree.map(lambda v: v + 0.2 * rng.normal(size=v.shape).astype(np.float32), params)
    return nnx.merge(graph, moved)


def call(module, given, batch, train=False):
    return module(given, batch, train=train, key=None, progress=None)


# ---- float64 --------------------------------------------------------------------------------


def parameters(module):
    flat = nnx.to_flat_state(nnx.state(module))
    return {"/".join(map(str, path)): np.float64(v[...]) for path, v in flat}


def of(p, prefix, layer=None):
    """Parameters under a prefix; of a layer of a stack."""
    cut = {k[len(prefix) + 1 :]: v for k, v in p.items() if k.startswith(f"{prefix}/")}
    return cut if layer is None else {k: v[layer] for k, v in cut.items()}


def norm64(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    unit = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return unit * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu64(x):
    return 0.5 * x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2)))


def attention64(p, name, x, memory, mask):
    """Head by head; mask [B, N]."""
    a = of(p, name)
    split = lambda side, y: (
        np.einsum("BTD,DHK->BHTK", y, a[f"{side}/kernel"]) + a[f"{side}/bias"][:, None]
    )
    q, k, v = split("query", x), split("key", memory), split("value", memory)
    logits = np.einsum("BHTK,BHNK->BHTN", q, k) / np.sqrt(K)
    if mask is not None:
        logits = np.where(mask[:, None, None], logits, -np.inf)
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    y = np.einsum("BHTN,BHNK->BTHK", weight, v)
    return np.einsum("BTHK,HKD->BTD", y, a["out/kernel"]) + a["out/bias"]


def mlp64(p, name, x):
    a = of(p, name)
    x = gelu64(x @ a["up/kernel"] + a["up/bias"])
    return x @ a["down/kernel"] + a["down/bias"]


def fused64(module, text, image):
    """Equation by equation: every layer attends to itself, to the image, then its perceptron; or,
    with `first`, one attention to the image as in the release of IRRA, and layers of the text."""
    p = parameters(module)
    every = module.config.cross == "every"
    x, memory = np.float64(text.tokens), np.float64(image.tokens)
    mask = np.asarray(text.mask)
    if not every:
        known = norm64(p, "memory_norm", memory)
        x = attention64(p, "cross", norm64(p, "text_norm", x), known, None)
    layer = of(p, "transformer/blocks", 0)
    y = norm64(layer, "attention_norm", x)
    x = x + attention64(layer, "attention", y, y, mask)
    if every:
        x = x + attention64(layer, "cross", norm64(layer, "cross_norm", x), memory, None)
    x = x + mlp64(layer, "mlp", norm64(layer, "mlp_norm", x))
    return norm64(p, "norm", x)


@pytest.mark.parametrize("cross", ["every", "first"])
def test_one_layer_is_that_of_the_paper(cross):
    module = head(cross=cross, words="masked_text", vocab_size=V)
    given = encoded()
    found = quick_jit(call)(module, given, {})
    fused = fused64(module, given["text"], given["image"])
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    near(found[""], fused[:, 0])
    p = parameters(module)
    near(found["matching"][:, 0], fused[:, 0] @ p["matching/kernel"] + p["matching/bias"])
    words = fused64(module, given["masked_text"], given["image"])
    words = gelu64(words @ p["words/dense/kernel"] + p["words/dense/bias"])
    words = norm64(p, "words/norm", words) @ p["words/out/kernel"] + p["words/out/bias"]
    near(found["words"], words)
    assert found["matching"].shape == (B, 1, 2) and found["words"].shape == (B, T, V)


def test_negatives_are_the_same_head_on_other_pairs():
    """Place 1 is the text with the drawn image, place 2 the drawn text with the image; the tokens
    of views are those of the places."""
    module = head(negatives="negatives")
    given = encoded()
    image_index, text_index = np.array([1, 2, 3, 0]), np.array([3, 0, 1, 2])
    batch = {"negatives/image_index": image_index, "negatives/text_index": text_index}
    found = quick_jit(call)(module, given, batch)["matching"]
    assert found.shape == (B, 3, 2)
    taken = lambda e, i: jax.tree.map(lambda x: x[i], e)
    one = quick_jit(call)
    other_image = dict(given, image=taken(given["image"], image_index))
    other_text = dict(given, text=taken(given["text"], text_index))
    for place, pairs in enumerate((given, other_image, other_text)):
        alone = one(module, pairs, {})["matching"][:, 0]
        np.testing.assert_allclose(found[:, place], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(found[:, 1] - found[:, 2]).max() > 1e-3

    rows = head(negatives="negatives", entries="rows")
    views = {
        "negatives/image": other_image["image"],
        "negatives/text": other_text["text"],
    }
    np.testing.assert_allclose(
        quick_jit(call)(rows, {**given, **views}, {})["matching"], found, rtol=1e-5, atol=1e-6
    )
    assert one(rows, given, {})["matching"].shape == (B, 1, 2), "a batch without negatives"


def test_padding_of_the_text_changes_nothing():
    module = head()
    given = encoded()
    text = given["text"]
    noise = jnp.where(text.mask[..., None], text.tokens, 9.0)
    moved = dict(given, text=text._replace(tokens=noise))
    one, two = (quick_jit(call)(module, x, {})[""] for x in (given, moved))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


MODEL = dict(
    name="dual_encoder",
    image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
    text=dict(name="text_transformer", variant="Ti", width=8, depth=1, heads=2, pool="mean"),
    embed_dim=8,
)
SPEC = InputSpec(image_size=16, text_length=T, vocab_size=V)


def model(views=None, **options):
    fusion = dict(name="fusion", depth=1, heads=2, **options)
    node = dict(MODEL, views=views or {}, heads=dict(fusion=fusion))
    return choose(MODELS, node, "model")


def test_in_a_model_it_runs_on_what_a_batch_has():
    config = model(dict(masked_text="text"), words="masked_text", vocab_size=V)
    built = functional(config, SPEC)
    params = built.init(jax.random.key(0))
    image = jnp.zeros((2, 16, 16, 3))
    text = jnp.ones((2, T), jnp.int32)
    shapes = lambda batch: jax.eval_shape(lambda *a: built.apply(*a)[0], *params, batch)
    assert not [name for name in shapes({"image": image}) if "fusion" in name]
    pair = shapes({"image": image, "text": text})
    assert pair["fusion"].shape == (2, 8) and "fusion/words" not in pair
    words = shapes({"image": image, "text": text, "masked_text": text})
    assert words["fusion/words"].shape == (2, T, V)
    with pytest.raises(ConfigError, match=r"heads\.fusion\.vocab_size.*at least 20"):
        model(dict(masked_text="text"), words="masked_text", vocab_size=V - 1).check_inputs(SPEC)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(heads=3), r"heads\.fusion\.heads.*must divide the text's width 8"),
        (dict(words="masked_text", vocab_size=V), r"'masked_text' is not there"),
        (dict(negatives="n", entries="rows"), r"'n/image' is not there"),
        (dict(vocab_size=V), r"vocab_size.*give both or neither"),
        (dict(matching=False), r"must have one of them"),
        (dict(reads=("text",)), r"must be a text and an image"),
    ],
)
def test_what_does_not_fit_is_named(options, said):
    with pytest.raises(ConfigError, match=said):
        node = dict(name="fusion", depth=1, **{"heads": 2, **options})
        choose(MODELS, dict(MODEL, heads=dict(fusion=node)), "model")


def test_the_scale_has_a_least_value():
    """ALBEF: the temperature stays in [0.001, 0.5]; at the bound only a gradient back passes."""
    config = choose(MODELS, dict(MODEL, min_scale=2.0, max_scale=1000.0), "model")
    built = functional(config, SPEC)
    params, rest = built.init(jax.random.key(0))
    text = jnp.ones((2, T), jnp.int32)

    def scale(log_scale, sign):
        out, _ = built.apply({**params, "log_scale": log_scale}, rest, {"text": text})
        return sign * out["log_scale"]

    slope = quick_jit(jax.value_and_grad(scale))
    for value, sign, want, gradient in (
        (0.0, 1.0, np.log(2), 0.0),  # descent would go on down
        (0.0, -1.0, -np.log(2), -1.0),
        (3.0, 1.0, 3.0, 1.0),
        (9.0, -1.0, -np.log(1000), 0.0),
    ):
        found = slope(jnp.float32(value), sign)
        np.testing.assert_allclose(found, (want, gradient), rtol=1e-6)
    with pytest.raises(ConfigError, match="min_scale"):
        choose(MODELS, dict(MODEL, min_scale=50.0), "model")
