"""IMP: one encoder, whatever comes in."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.audio import Spectrogram
from jaxvl.data.config import DataConfig
from jaxvl.data.fields.base import Field
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.picture import Picture
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.models import InputSpec
from jaxvl.models.functional import functional
from jaxvl.models.imp import ImpConfig
from jaxvl.models.imp_encoder import _reports
from jaxvl.nn.moe import MoeConfig, MoeOutput, Skills
from jaxvl.nn.patches import cut, drop_tokens
from jaxvl.objectives.multi_instance import ModalityPairs
from jaxvl.sharding import MeshConfig, make_mesh, param_shardings
from jaxvl.sharding.mesh import batch_sharding

PAIRS = ("vision-text", "vision-audio", "audio-text")
SMALL = ImpConfig(
    variant="small",
    width=32,
    depth=2,
    heads=2,
    hidden=64,
    embed_dim=16,
    projection_hidden=24,
    pairs=PAIRS,
)
SPARSE = dataclasses.replace(
    SMALL, moe=MoeConfig(last=1, experts=4, span="row"), classes={"kind": 5}
)
INPUTS = InputSpec(32, 8, 50, 0, 1)


@pytest.fixture(scope="module", params=[SMALL, SPARSE], ids=["dense", "sparse"])
def model(request):
    built = functional(request.param, INPUTS)
    params, rest = built.init(jax.random.key(0))
    return built, params, rest


def embed(model, name, x, target, length=None):
    built, params, rest = model
    return np.asarray(
        jax.jit(lambda p, x, n: built.apply(p, rest, name, x, target, n, method="embed")[0])(
            params, x, length
        )
    )


# The released models' numbers of parameters in the backbone: attention, MLP, norms and the patches
# of video.
@pytest.mark.parametrize("variant, millions", [("small", 21), ("base", 88), ("large", 306)])
def test_backbones_have_the_published_sizes(variant, millions):
    built = functional(ImpConfig(variant=variant), InputSpec(256, 16, 32100, 0, 1))
    count = sum(
        math.prod(s.shape)
        for p, s in built.params.items()
        if p.startswith(("transformer", "vision", "norm"))
    )
    assert count / 1e6 == pytest.approx(millions, rel=0.07 if variant == "small" else 0.02)


def test_a_picture_is_a_video_of_equal_frames(model):
    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    video = jnp.repeat(image[:, None], SMALL.patch_frames, axis=1)
    np.testing.assert_allclose(
        embed(model, "image", image, "text"), embed(model, "video", video, "text"), atol=1e-5
    )


@pytest.mark.parametrize(
    "name, one",
    [("image", (16, 16, 3)), ("spectrogram", (32, 128)), ("waveform", (1024,)), ("text", (8,))],
)
def test_instances_of_a_row_are_encoded_each_like_a_row(name, one):
    built = functional(SMALL, INPUTS)
    model = built, *built.init(jax.random.key(0))
    shape = (2, 3, *one)
    key = jax.random.key(4)
    target = "vision" if name != "image" else "text"
    x = jax.random.randint(key, shape, 0, 50) if name == "text" else jax.random.normal(key, shape)
    length = jnp.array([[32, 16, 7], [1, 31, 32]]) if name in ("spectrogram", "waveform") else None
    flat = embed(
        model, name, x.reshape(6, *one), target, None if length is None else length.reshape(-1)
    )
    np.testing.assert_allclose(
        embed(model, name, x, target, length), flat.reshape(2, 3, -1), atol=1e-6
    )


@pytest.mark.parametrize(
    "name, shape, part",
    [("spectrogram", (2, 64, 128), 32), ("waveform", (2, 2048), 1024), ("text", (2, 8), 5)],
)
def test_padding_does_not_count(name, shape, part):
    built = functional(
        SMALL, INPUTS
    )  # expert choice shares its places among all tokens, so that a sparse model sees the length
    model = built, *built.init(jax.random.key(0))
    x = (
        jax.random.normal(jax.random.key(2), shape)
        if name != "text"
        else jax.random.randint(jax.random.key(2), shape, 2, 50)
    )
    short = x[:, :part]
    padded = x.at[:, part:].set(0 if name == "text" else 9.0)
    length = None if name == "text" else jnp.full(2, part)
    np.testing.assert_allclose(
        embed(model, name, padded, "vision", length), embed(model, name, short, "vision"), atol=1e-5
    )


def test_dropped_tokens_leave_the_others_where_they_were():
    x = jnp.arange(2 * 8 * 32 * 32 * 1, dtype=jnp.float32).reshape(2, 8, 32, 32, 1)
    patches = cut(x, (4, 16, 16), "video")
    kept = drop_tokens(patches, 0.5, jax.random.key(0))
    assert kept.values.shape[1] == 4
    for row in range(2):
        places = {
            tuple(p): v
            for p, v in zip(patches.places[row].tolist(), np.asarray(patches.values[row]))
        }
        chosen = [tuple(p) for p in kept.places[row].tolist()]
        assert chosen == sorted(chosen) and len(set(chosen)) == 4
        for place, values in zip(chosen, np.asarray(kept.values[row])):
            np.testing.assert_array_equal(values, places[place])
            t, h, w = place
            np.testing.assert_array_equal(
                values,
                x[row, 4 * t : 4 * t + 4, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16].reshape(-1),
            )
    assert not np.array_equal(
        kept.places[0], drop_tokens(patches, 0.5, jax.random.key(1)).places[0]
    )


def test_a_batch_gives_the_pairs_that_it_has(model):
    built, params, rest = model
    batch = dict(
        image=jnp.ones((4, 32, 32, 3)), text=jnp.full((4, 8), 7), spectrogram=jnp.ones((4, 32, 128))
    )
    outputs, _ = jax.eval_shape(lambda p: built.apply(p, rest, batch), params)
    assert {k for k in outputs if ">" in k} == {
        f"{a}>{b}" for pair in PAIRS for a, b in (pair.split("-"), pair.split("-")[::-1])
    }
    del batch["spectrogram"]
    outputs, _ = jax.eval_shape(lambda p: built.apply(p, rest, batch), params)
    assert {k for k in outputs if ">" in k or "scale" in k} == {
        "vision>text",
        "text>vision",
        "log_scale/vision-text",
    }


def test_class_heads_see_the_modality_that_they_are_given():
    built = functional(dataclasses.replace(SMALL, classes={"kind": 5, "voice": 3}), INPUTS)
    params, rest = built.init(jax.random.key(0))
    batch = dict(
        image=jnp.ones((4, 32, 32, 3)),
        text=jnp.full((4, 8), 7),
        spectrogram=jax.random.normal(jax.random.key(1), (4, 32, 128)),
    )
    batch["has_spectrogram"] = jnp.array([True, False, True, True])
    heads = {"kind": ("text", "text"), "voice": ("audio", "spectrogram")}

    @jax.jit
    def all_ways(params, batch):
        apply = lambda *args, **options: built.apply(params, rest, *args, **options)[0]
        out = apply(batch, classes={head: modality for head, (modality, _) in heads.items()})
        found = {}
        for head, (modality, name) in heads.items():
            alone = apply({name: batch[name]}, classes={head: modality})
            found[head] = alone, apply(name, batch[name], method="encode").pooled
        return out, found

    out, found = all_ways(params, batch)
    for head, (alone, pooled) in found.items():
        np.testing.assert_allclose(out[f"logits/{head}"], alone[f"logits/{head}"], atol=1e-6)
        want = pooled @ params[f"classes/{head}/kernel"] + params[f"classes/{head}/bias"]
        np.testing.assert_allclose(alone[f"logits/{head}"], want, atol=1e-5)
    assert "has/logits/kind" not in out
    np.testing.assert_array_equal(out["has/logits/voice"], batch["has_spectrogram"])


def test_an_expert_is_dead_that_no_input_wakes():
    shares = dict(image=[0.5, 0.5, 0, 0], text=[0, 0, 1.0, 0])

    def reported(kind, weight):
        weight = jnp.array([weight])  # one layer
        health = {"load": weight, "dead": (weight == 0) * 1.0, "dropped": jnp.ones(1) * 0.5}
        return MoeOutput(None, {}, health | {f"weight/{k}": weight * (k == kind) for k in shares})

    found = _reports([reported(kind, weight) for kind, weight in shares.items()], 3)
    np.testing.assert_array_equal(found["moe/health/dead"][0], [[0, 0, 0, 1]])
    np.testing.assert_allclose(found["moe/health/load"][0], [[0.25, 0.25, 0.5, 0]])
    for kind, weight in shares.items():
        np.testing.assert_allclose(found[f"moe/health/weight/{kind}"][2], [weight])


@pytest.mark.parametrize(
    "inputs, pairs, none",
    [
        (("spectrogram",), (), {"vision", "words", "word_positions", "waveform"}),
        (("image", "text"), ("vision-text",), {"spectrogram", "waveform"}),
    ],
)
def test_it_has_no_parameters_for_what_it_does_not_take(inputs, pairs, none):
    built = functional(dataclasses.replace(SMALL, inputs=inputs, pairs=pairs), INPUTS)
    parts = {path.split("/")[0] for path in built.params}
    assert not none & parts and {"transformer", "norm"} <= parts
    if "text" not in inputs:
        with pytest.raises(
            ValueError, match=r"text: the model does not take it \(inputs: spectrogram\)"
        ):
            jax.eval_shape(
                lambda p: built.apply(p, {}, "text", jnp.ones((2, 4), int), method="encode"),
                built.params,
            )


def test_a_waveform_is_heard_as_its_spectrogram_and_what_rows_lack_is_told():
    log_mel = Spectrogram(frame=256, step=128, bins=32)
    config = dataclasses.replace(SMALL, log_mel=log_mel, spectrogram_patch=16)
    built = functional(config, INPUTS)
    params, rest = built.init(jax.random.key(0))
    waveform = np.random.default_rng(0).integers(-9000, 9000, (4, 4096)).astype(np.int16)
    length = jnp.array([4096, 2048, 1000, 4096])
    has = jnp.array([True, True, True, False])
    image = jnp.ones((4, 32, 32, 3))
    outputs, _ = jax.jit(built.apply)(
        params, rest, dict(image=image, waveform=waveform, waveform_length=length, has_waveform=has)
    )
    values, real = log_mel(jnp.asarray(waveform), length)
    assert real.sum(1).tolist() == [32, 16, 8, 32]
    direct, _ = jax.jit(built.apply)(
        params, rest, dict(image=image, spectrogram=values, spectrogram_length=real.sum(1))
    )
    np.testing.assert_allclose(outputs["audio>vision"], direct["audio>vision"], atol=1e-6)
    np.testing.assert_array_equal(outputs["has/audio"], has)
    padded = np.where(np.arange(4096) < np.asarray(length)[:, None], waveform, 0)
    for row, n in (
        (1, 2048),
        (2, 1024),
    ):  # as if it ended with its last patch, but for what the window reaches of what follows
        alone, _ = log_mel(jnp.asarray(padded[row : row + 1]))
        model = (built, params, rest)
        cut = embed(model, "spectrogram", alone[:, : -(-n // 128 // 16) * 16], "vision")
        masked = embed(model, "spectrogram", alone, "vision", real.sum(1)[row : row + 1])
        np.testing.assert_allclose(masked, cut, atol=1e-5)
    raw = functional(dataclasses.replace(SMALL, waveform_patch=256), INPUTS)
    params, rest = raw.init(jax.random.key(0))
    both = [
        jax.jit(raw.apply)(params, rest, dict(image=image, waveform=w))[0]["audio>vision"]
        for w in (waveform, waveform / np.float32(32768))
    ]
    np.testing.assert_allclose(*both, atol=1e-6)
    with pytest.raises(ConfigError, match="log_mel: needs 'spectrogram' among the inputs"):
        dataclasses.replace(config, inputs=("image", "waveform", "text"))


def test_a_task_moves_only_what_it_uses():
    built = functional(SPARSE, INPUTS)
    params, rest = built.init(jax.random.key(0))
    batch = dict(
        image=jax.random.normal(jax.random.key(1), (4, 32, 32, 3)),
        text=jax.random.randint(jax.random.key(2), (4, 8), 2, 50),
    )

    def loss(params):
        out = built.apply(
            params, rest, batch, classes={"kind": "vision"}, train=True, key=jax.random.key(3)
        )[0]
        return jnp.sum(out["vision>text"] * out["text>vision"]) + jnp.sum(out["logits/kind"] ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    still = {p.split("/")[0] for p, g in gradient.items() if not np.any(g)}
    assert {"spectrogram", "waveform"} <= still and not {
        "vision",
        "words",
        "transformer",
        "classes",
    } & still
    assert all(
        np.any(g) == ("audio" not in p) for p, g in gradient.items() if p.startswith("projections/")
    )


def test_eight_devices_equal_one():
    built = functional(
        dataclasses.replace(SPARSE, moe=MoeConfig(last=1, experts=4, span="batch", group_size=64)),
        INPUTS,
    )
    params, rest = built.init(jax.random.key(0))
    batch = dict(
        image=jax.random.normal(jax.random.key(1), (8, 32, 32, 3)),
        text=jax.random.randint(jax.random.key(2), (8, 8), 2, 50),
    )

    def outputs(params, batch):
        return built.apply(
            params, rest, batch, drop={"image": 0.5}, train=True, key=jax.random.key(3)
        )[0]

    alone = jax.jit(outputs)(params, batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    shardings = param_shardings(built.axes, {p: s.shape for p, s in built.params.items()}, mesh)
    with jax.set_mesh(mesh):
        together = jax.jit(outputs)(jax.device_put(params, shardings), batch)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=1e-5, err_msg=name)


def test_rows_of_several_texts_on_two_devices_equal_one():
    built = functional(SMALL, INPUTS)
    params, rest = built.init(jax.random.key(0))
    batch = dict(
        image=jax.random.normal(jax.random.key(1), (4, 32, 32, 3)),
        text=jax.random.randint(jax.random.key(2), (4, 3, 8), 2, 50),
    )

    def gradient(params, batch):
        def loss(params):
            return ModalityPairs()(
                built.apply(params, rest, batch)[0], {"group_id": jnp.arange(4)}, (), None
            )[0].value

        return jax.value_and_grad(loss)(params)

    alone = jax.jit(gradient)(params, batch)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    shardings = param_shardings(built.axes, {p: s.shape for p, s in built.params.items()}, mesh)
    with jax.set_mesh(mesh):
        together = jax.jit(gradient)(
            jax.device_put(params, shardings), jax.device_put(batch, batch_sharding(mesh))
        )
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    for name, value in alone[1].items():
        np.testing.assert_allclose(together[1][name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name, x, message",
    [
        (
            "video",
            jnp.ones((1, 6, 32, 32, 3)),
            "6 x 32 x 32 must be a multiple of the patch 4 x 16 x 16",
        ),
        (
            "spectrogram",
            jnp.ones((1, 2048, 128)),
            "128 patches along time are more than the 64 positions",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name, x, message):
    built = functional(SMALL, INPUTS)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: built.apply(p, {}, name, x, "text", method="embed"), built.params)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError, match="pairs: 'vision-smell' must be two of vision, audio, text"
    ):
        ImpConfig(pairs=("vision-smell",))
    with pytest.raises(
        ConfigError, match="pairs: 'vision-audio' needs spectrogram or waveform among the inputs"
    ):
        ImpConfig(inputs=("image", "text"), pairs=("vision-audio",))
    with pytest.raises(ConfigError, match="max_scale: 0 must be > 0"):
        ImpConfig(max_scale=0)
    with pytest.raises(ConfigError, match="last: 6 layers are more than the 2"):
        ImpConfig(width=32, depth=2, heads=2, moe=MoeConfig(last=6))


IMAGE = Picture()
TEXT = Caption()


@pytest.mark.parametrize(
    "fields, encode, message",
    [
        (
            {},
            dict(drop=dict(image=75.0)),
            r"encode\.drop\.image: 75\.0 is a share of the tokens; must be in \[0, 1\)",
        ),
        ({}, dict(drop=dict(image=-0.5)), r"encode\.drop\.image: -0\.5 is a share"),
        (
            {},
            dict(drop=dict(video=0.5)),
            r"encode\.drop\.video: has no patches to drop in this task \(those that have: image\)",
        ),
        ({}, dict(drop=dict(text=0.5)), r"encode\.drop\.text: has no patches"),
        (
            {},
            dict(classes=dict(knd="vision")),
            r"encode\.classes\.knd: is no head of the model; did you mean 'kind'",
        ),
        (
            {},
            dict(classes=dict(kind="audio")),
            r"encode\.classes\.kind: 'audio' is no modality of this task \(text, vision\)",
        ),
        (
            {},
            dict(skills=("nose",)),
            r"encode\.skills: 'nose' is no skill of the model \(vision, text\)",
        ),
        (
            dict(image=IMAGE, waveform=Waveform()),
            {},
            r"encode\.skills: 'audio' is no skill of the model \(vision, text\)",
        ),
        (
            dict(video=Frames(frames=6), text=TEXT),
            {},
            r"data\.fields\.video\.frames: 6 must be a multiple of 4, of at most 64",
        ),
        (
            dict(image=IMAGE, video=Frames()),
            {},
            r"data\.fields: \['image', 'video'\] must be one of a modality",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_refused_by_name(
    fields: dict[str, Field], encode: dict, message: str
):
    config = dataclasses.replace(
        SPARSE, moe=MoeConfig(last=1, experts=2, router=Skills(names=("vision", "text")))
    )
    data = DataConfig(Shapes(), batch=4, fields=fields or dict(image=IMAGE, text=TEXT))
    with pytest.raises(ConfigError, match=message):
        config.check_task(data, encode)
