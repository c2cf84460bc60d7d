"""COSMO: rows of several images against rows of one, which image a token sees, where the contrast's
gradient ends, learning."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jaxvl import train
from jaxvl.config import ConfigError, resolve
from jaxvl.data.packing import pack
from jaxvl.models import InputSpec
from jaxvl.models.cosmo import CosmoConfig
from jaxvl.models.functional import functional
from jaxvl.models.generate import Generation, TextShape, generate
from jaxvl.nn.gated import GatedBlock
from jaxvl.nn.transformer import Sizes, StackOptions
from jaxvl.objectives.captioning import Captioning
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.training.experiment import Experiment

B = 2
K = 3
T = 6
INPUTS = InputSpec(image_size=16, text_length=K * T, vocab_size=40, pad_id=0, eos_id=1)
SMALL = dict(
    image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
    width=24,
    heads=2,
    unimodal=1,
    multimodal=2,
    queries=3,
    pooler_heads=2,
    embed_dim=8,
)


@functools.cache
def build(across=True, noise=0.1):
    """(apply, params); biases, positions and gates start at or near zero: without noise, what reads
    the wrong one would pass."""
    model = functional(resolve(CosmoConfig, {**SMALL, "across": across}), INPUTS)
    params, rest = model.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = {
        p: v + np.float32(noise * rng.normal(size=v.shape)) for p, v in sorted(params.items())
    }
    if noise:
        params |= {p: v + 1.0 for p, v in params.items() if p.endswith("gate")}

    @functools.partial(jax.jit, static_argnames=("method", "length"))
    def apply(params, *args, method="__call__", **kwargs):
        return model.apply(params, rest, *args, method=method, **kwargs)[0]

    return apply, params


def rows(seed=0):
    """(packed batch, texts int [B, K, T])."""
    rng = np.random.default_rng(seed)
    place = np.arange(T)
    ends = rng.integers(1, T, (B, K, 1))
    texts = np.where(
        place < ends, rng.integers(2, 40, (B, K, T)), np.where(place == ends, 1, 0)
    ).astype(np.int32)
    image = rng.normal(size=(B, K, 16, 16, 3)).astype(np.float32)
    return {"image": image, **pack(texts, K * T, eos_id=1, pad_id=0)}, texts


SCORES = ("caption_lse", "caption_target", "caption_mean")


def test_a_row_of_several_is_rows_of_one_where_texts_do_not_see_each_other():
    (apply, params), (batch, texts) = build(across=False), rows()
    whole = apply(params, batch)
    alone = apply(
        params, {"image": batch["image"].reshape(B * K, 16, 16, 3), "text": texts.reshape(B * K, T)}
    )
    for side in ("image", "text"):
        np.testing.assert_allclose(whole[side].reshape(B * K, -1), alone[side][:, 0], atol=1e-5)
    np.testing.assert_allclose(
        apply(params, texts[:, 0], method="encode_text"), whole["text"][:, 0], atol=1e-5
    )
    np.testing.assert_array_equal(whole["caption_weight"], batch["weight"])
    for row in range(B):
        for k in range(K):
            own = batch["segment"][row] == k + 1
            n = batch["lengths"][row, k]
            for name in SCORES:
                np.testing.assert_allclose(
                    whole[name][row][own], alone[name][row * K + k, :n], atol=1e-5, err_msg=name
                )


@pytest.mark.parametrize("across", [False, True])
def test_which_image_and_which_texts_a_token_sees(across):
    (apply, params), (batch, _) = build(across), rows()
    before = apply(params, batch)
    segment = batch["segment"]
    moved = lambda after: np.abs(after["caption_lse"] - before["caption_lse"]) > 1e-5
    after = apply(
        params, {**batch, "image": batch["image"] + (np.arange(K) == 1)[:, None, None, None]}
    )
    assert moved(after)[segment == 2].all() and not moved(after)[segment == 1].any()
    assert moved(after)[segment == 3].any() == across, "later texts see image 2 through text 2 only"
    first = batch["text"].copy()
    first[:, 0] = 17
    after = apply(params, {**batch, "text": first})
    assert (moved(after)[segment > 1]).any() == across
    # A token sees nothing of what comes after it.
    cut = {**batch, "text": np.where(segment < 2, batch["text"], 9)}
    assert not moved(apply(params, cut))[segment == 1].any()


def test_attention_to_the_image_before_equals_a_loop_over_tokens():
    """The gated half of a layer in float64, one token at a time; then the layer's own block."""
    d = 16
    heads = 4
    n = 3
    hidden = 20
    block = GatedBlock(
        Sizes(d, 1, heads, hidden),
        StackOptions(activation="gelu"),
        rngs=nnx.Rngs(params=0),
        memory_width=10,
    )
    rng = np.random.default_rng(1)
    for _, variable in nnx.to_flat_state(nnx.state(block, nnx.Param)):
        noise = 0.3 * rng.normal(size=variable.shape)
        variable[...] = variable[...] + noise.astype(np.float32)
    assert abs(block.cross_gate[...]) > 0.01 and abs(block.mlp_gate[...]) > 0.01
    rng = np.random.default_rng(0)
    segment = np.array([[0, 1, 1, 2, 2, 2], [1, 1, 2, 3, 3, 0]])
    x = rng.normal(size=(2, 6, d))
    latents = rng.normal(size=(2, 3 * n, 10))
    seen = segment[..., None] == np.repeat(np.arange(1, 4), n)
    got = jax.jit(lambda x, latents: block(x, latents, memory_mask=seen, causal=True))(
        np.float32(x), np.float32(latents)
    )

    w = lambda v: np.asarray(v[...], np.float64)
    norm = lambda m, y: (y - y.mean()) / np.sqrt(y.var() + m.eps) * w(m.scale) + w(m.bias)
    part = lambda m, y: np.einsum("d,dhk->hk", y, w(m.kernel)) + w(m.bias)
    expected = x.copy()
    for b in range(2):
        for t in range(6):
            y = x[b, t]
            image = segment[b, t]
            if image:
                q = part(block.cross.query, norm(block.cross_norm, y))
                own = latents[b, (image - 1) * n : image * n]
                logits = np.stack([(q * part(block.cross.key, m)).sum(1) for m in own]) / np.sqrt(
                    d / heads
                )
                weights = scipy.special.softmax(logits, axis=0)
                read = sum(a[:, None] * part(block.cross.value, m) for a, m in zip(weights, own))
                y = y + np.tanh(w(block.cross_gate)) * (
                    np.einsum("hk,hkd->d", read, w(block.cross.out.kernel))
                    + w(block.cross.out.bias)
                )
            up = norm(block.gated_norm, y) @ w(block.gated_mlp.up.kernel) + w(
                block.gated_mlp.up.bias
            )
            up = up * scipy.special.ndtr(up)
            expected[b, t] = y + np.tanh(w(block.mlp_gate)) * (
                up @ w(block.gated_mlp.down.kernel) + w(block.gated_mlp.down.bias)
            )
    after = jax.jit(lambda x: block.block(x, causal=True))
    np.testing.assert_allclose(got, after(np.float32(expected)), atol=2e-5)


def test_the_contrast_has_no_gradient_above_the_split():
    (apply, params), (batch, _) = build(), rows()
    ids = {"group_id": jnp.arange(B * K).reshape(B, K)}

    def gradient(objective):
        loss = lambda p: objective(apply(p, batch), ids, (), None)[0].value
        return jax.jit(jax.grad(loss))(params)

    contrast = gradient(SymmetricSoftmax())
    caption = gradient(Captioning())
    above = [p for p in params if p.startswith(("multimodal/", "head/", "norm/"))]
    assert any("/cross/" in p for p in above)
    for path in above:
        assert not np.asarray(contrast[path]).any(), path
        if not path.endswith("key/bias"):  # the same for every key: softmax does not see it
            assert np.asarray(caption[path]).any(), path
    for path in (
        "unimodal/blocks/attention/value/kernel",
        "text_pooler/query",
        "caption_pooler/query",
        "encoder/patches/kernel",
    ):
        assert np.asarray(contrast[path]).any(), path


def test_a_fresh_model_reads_no_image_and_contrast_is_that_of_single_pairs():
    (apply, params), (batch, _) = build(noise=0.0), rows()
    fresh = apply(params, batch)
    other = apply(params, {**batch, "image": batch["image"][::-1]})
    np.testing.assert_array_equal(
        fresh["caption_lse"], other["caption_lse"]
    )  # the gates are closed
    # B K pairs: rows of different images in one row are negatives as any other.
    u, v = (np.asarray(fresh[k], np.float64).reshape(B * K, -1) for k in ("image", "text"))
    s = np.exp(float(fresh["log_scale"])) * u @ v.T
    expected = (
        scipy.special.logsumexp(s, 0).mean() + scipy.special.logsumexp(s, 1).mean()
    ) / 2 - np.diag(s).mean()
    for duplicates in ("diagonal", "positive"):
        loss, _ = SymmetricSoftmax(duplicates=duplicates)(
            fresh, {"group_id": jnp.arange(B * K).reshape(B, K)}, (), None
        )
        np.testing.assert_allclose(loss.value, expected, rtol=1e-5)


def test_decoding_equals_decoding_without_kept_keys():
    (apply, params), (batch, _) = build(), rows()
    image = jnp.asarray(batch["image"].reshape(B * K, 16, 16, 3))
    kv_cache, cross_kv = apply(params, image, length=T, method="prefill")
    step = lambda kv_cache, token, position: apply(
        params, kv_cache, cross_kv, token, position, method="decode_step"
    )
    got = np.asarray(generate(step, kv_cache, Generation(), TextShape(len(image), T, 1, 0)).tokens)
    logits = np.array(apply(params, image, jnp.asarray(got), method="caption_logits"))[:, :T]
    logits[..., 0] = -np.inf
    best = logits.argmax(-1)
    best[:, -1] = 1  # the last place is EOS's
    np.testing.assert_array_equal(np.where(got != 0, best, 0), got)
    # And the scores of the same texts are those of these logits.
    scores = apply(params, {"image": image, "text": jnp.asarray(got)})
    expected = scipy.special.logsumexp(
        np.array(apply(params, image, jnp.asarray(got), method="caption_logits"))[:, :T], -1
    )
    np.testing.assert_allclose(scores["caption_lse"][got != 0], expected[got != 0], atol=1e-5)


SHAPES = dict(name="shapes", size=16, variants=1, split="test_b_new")
ROWS = dict(records=4, length=40)
FIELDS = dict(
    image=dict(name="picture", size=16),
    text=dict(name="caption", columns="name/en", length=14),
    group_id=dict(name="group", column="class_label"),
)


def experiment(**changes):
    data = dict(source=SHAPES, batch=16, fields=FIELDS, interleave=ROWS, reader=dict(threads=2))
    config = dict(
        model=dict(
            name="cosmo",
            image=dict(name="vit", variant="Ti/4", width=64, depth=2, heads=2, pool="mean"),
            width=64,
            heads=2,
            hidden=128,
            unimodal=1,
            multimodal=1,
            queries=4,
            embed_dim=32,
        ),
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=64),
        tasks=dict(
            rows=dict(
                data=data,
                objectives=dict(clip=dict(weight=0.5, duplicates="positive"), captioning=1.0),
                microbatches=2,
            )
        ),
        evals=dict(rows=dict(name="interleaved", source=SHAPES, text="name/en", interleave=ROWS)),
        mesh=dict(data=2, fsdp=4),
        steps=100,
        optim=dict(lr=3e-3, warmup=20),
        checkpoint=dict(every=80),
        log=dict(every=1, tensorboard=False, report=False),
    )
    return resolve(Experiment, {**config, **changes})


@pytest.mark.slow
def test_a_run_that_learns_which_image_is_meant(tmp_path):
    """On a mesh, in microbatches; resumed from a checkpoint, it ends where it would have."""
    latest = train.train(experiment(), tmp_path / "run")
    assert (
        latest["rows/rise"] > 0.3
        and latest["rows/token_accuracy"] > latest["rows/token_accuracy_swapped"] + 0.1
    ), latest
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "again" / "checkpoints")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "100")
    again = train.train(experiment(), tmp_path / "again")
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in latest.items() if k != "seconds"
    }


def test_a_model_of_single_images_refuses_interleaved_rows():
    model = dict(name="coca", image=SMALL["image"], width=24, heads=2, unimodal=1, multimodal=1)
    with pytest.raises(
        ConfigError,
        match=r"^tasks\.rows\.data\.interleave: the model reads one image per row; must be None",
    ):
        experiment(model=model)
