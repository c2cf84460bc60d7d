"""MaPLe: class texts of a step, each encoded once, and the cross-entropy over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import compare, embeddings, log_softmax, same_on_a_mesh

from jaxvl.before.class_texts import DealtClassTexts
from jaxvl.config import ConfigError, choose
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.class_texts import ClassTexts
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.functional import functional
from jaxvl.objectives.class_texts import ClassTextEntropy


def example(b=8, c=11, d=5):
    """Class texts of numbers 3, 4 … dealt to b rows; a row of no class among them."""
    each = -(-c // b)
    image, text = embeddings((b, d), (b * each, d))
    number = np.where(np.arange(b * each) < c, np.arange(b * each) + 3, -1)
    label = np.random.default_rng(1).integers(3, 3 + c, b)
    label[2] = 99
    outputs = {
        "image": image,
        "classes/text": text.reshape(b, each, d),
        "log_scale": np.float64(1.3),
    }
    return outputs, {"classes/number": number.reshape(b, each), "class_label": label}


def test_cross_entropy_over_the_classes():
    outputs, batch = example()

    def oracle(o):
        text = o["classes/text"].reshape(-1, 5)[:11]  # the rest have been dealt already
        log_p = log_softmax(np.exp(o["log_scale"]) * o["image"] @ text.T, 1)
        rows = [i for i in range(8) if i != 2]
        return -np.mean([log_p[i, batch["class_label"][i] - 3] for i in rows])

    compare(ClassTextEntropy(), outputs, batch, oracle)


def test_devices():
    same_on_a_mesh(ClassTextEntropy(), *example(b=16, c=40))


@pytest.mark.parametrize("rows, count", [(4, 6), (8, 3), (3, 3)])
def test_every_class_is_dealt_once(rows, count):
    tokens = np.arange(count * 5).reshape(count, 5)
    batch = {
        "class_texts": jnp.broadcast_to(tokens, (rows, count, 5)),
        "class_texts_class": jnp.broadcast_to(10 + np.arange(count), (rows, count)),
    }
    found = DealtClassTexts().whole(batch, jax.random.key(0))
    number = np.asarray(found["number"])
    assert number.shape == (rows, -(-count // rows))
    assert sorted(number[number >= 0]) == list(10 + np.arange(count))
    for place in np.ndindex(number.shape):
        if number[place] >= 0:
            np.testing.assert_array_equal(found["text"][place], tokens[number[place] - 10])
    with pytest.raises(ConfigError, match="entry: 'class_texts' is not in the batch"):
        DealtClassTexts().whole({}, jax.random.key(0))


def test_the_texts_are_those_of_the_classes_that_occur():
    source = Shapes(size=16, variants=1, split="test_b_new").open(lambda text: None)
    config = TokenizerConfig(vocab_size=64)
    tokenizer = make_tokenizer(config, ["a photo of two red stars."] * 4)
    names = source.columns["class_label"].classes.names["en"]
    present = np.unique(source.column("class_label"))
    context = Context(tokenizer, Preprocess(), Cache(0))
    field = ClassTexts(count=len(present), length=16)
    reader = field.reader("x", source, context)
    out = {k: np.zeros((2, *s.shape), s.dtype) for k, s in field.arrays("x").items()}
    reader.write(out, 1, reader.load({}), [])
    np.testing.assert_array_equal(out["x_class"][1], present)
    want = tokenizer.encode([f"a photo of a {names[c]}." for c in present], 16)
    np.testing.assert_array_equal(out["x"][1], want)
    for options, told in (
        (dict(count=3), f"count: 3 must be {len(present)}, the classes"),
        (dict(count=3, column="image"), "column: 'image' of .* holds image"),
        (dict(count=3, language="la"), "language: 'la': the classes"),
    ):
        with pytest.raises(ConfigError, match=told):
            ClassTexts(**options).reader("x", source, context)


def test_rows_of_several_texts_are_the_texts_alone():
    towers = dict(
        image=dict(name="vit", variant="Ti/8", width=8, depth=1, heads=2, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=8, depth=1, heads=2, pool="mean"),
    )
    node = dict(name="dual_encoder", **towers, embed_dim=8, views={"classes/text": "text"})
    model = functional(choose(MODELS, node, "model"), InputSpec(16, 6, 32))
    params, _ = model.init(jax.random.key(0))
    text = jax.random.randint(jax.random.key(1), (2, 3, 6), 0, 32)
    apply = jax.jit(model.apply)
    several, _ = apply(params, {}, {"classes/text": text})
    alone, _ = apply(params, {}, {"text": text.reshape(6, 6)})
    assert several["classes/text"].shape == (2, 3, 8)
    np.testing.assert_allclose(several["classes/text"].reshape(6, 8), alone["text"], atol=1e-6)
