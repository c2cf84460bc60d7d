"""What a run begins with, from several sources by path."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl.config import ConfigError, choose
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer
from jaxvl.interop.bundle import Bundle
from jaxvl.interop.libraries import LIBRARIES
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.functional import functional
from jaxvl.sharding.mesh import replicated
from jaxvl.training import start
from jaxvl.training.build import Vocabulary, build_model
from jaxvl.training.experiment import StartConfig
from jaxvl.training.state import TrainState

VOCABULARY = Vocabulary(64, 0, 1)
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
LORA = dict(low=dict(name="lora", paths="query$", rank=2))
ROUTER = dict(name="token_choice", top=2, capacity_factor=None, renormalise=True)


@dataclasses.dataclass(frozen=True)
class Words:
    """Stands for a tokenizer."""

    text: str
    kind: str = "unigram"

    def to_json(self):
        return self.text


def sized(**changes):
    """The miniature's model; `changes` are of the image tower."""
    model = tiny.config().to_dict()["model"]
    return {**model, "image": {**model["image"], **changes}}


@functools.cache
def _built(text):
    return build_model(tiny.experiment(**json.loads(text)), VOCABULARY)


def built(**changes):
    """The miniature's model with other options, kept."""
    return _built(json.dumps(changes))


def drawn(model, seed):
    rng = np.random.default_rng(seed)
    shapes = {**model.params, **model.model_state}
    return {p: jnp.asarray(rng.normal(size=s.shape), jnp.float32) for p, s in shapes.items()}


@pytest.fixture
def weights(monkeypatch):
    """Sources by name, in place of what lies in workdirs."""
    known = {}

    def add(name, seed, words="a", preprocess=None, **changes):
        model = built(**changes)
        asked = tiny.experiment().tokenizer
        preprocess = preprocess or Preprocess(image_size=16)
        read = frozenset({"text/encoder/words/embedding"})
        tokenizer = (Words(words), asked)
        known[name] = start.Source(name, drawn(model, seed), read, *tokenizer, preprocess)
        return known[name].arrays

    monkeypatch.setattr(start, "read_source", known.__getitem__)
    return add


def begun(**changes):
    """(this run's own fresh arrays, those that it begins with)."""
    experiment = tiny.experiment(**changes)
    of_model = {"model", "adapters", "preprocess"} & {*changes}
    model = built(**{key: changes[key] for key in sorted(of_model)})
    fresh = drawn(model, 100)
    parts = [{p: fresh[p] for p in part} for part in (model.params, model.model_state)]
    state = TrainState(0, None, *parts, None, {}, {}, {}, {})
    shardings = types.SimpleNamespace(
        params={p: replicated(MESH) for p in model.params},
        model_state={p: replicated(MESH) for p in model.model_state},
    )
    initial = start.initial_weights(experiment)
    state = initial.put_into(state, experiment, model, shardings)
    return fresh, {**state.params, **state.model_state}, initial


def test_two_sources_by_rule(weights):
    pictures, texts = weights("pictures", 0), weights("texts", 1)
    rules = (
        dict(source="pictures", take="^image/|^log_scale$"),
        dict(source="texts", take="^text/encoder/"),
    )
    missing = r"start: covers not 1 of the model's \d+ parameters: text/projection/kernel; take"
    with pytest.raises(ConfigError, match=missing):
        begun(start=rules)
    drawn_here = "^text/projection/|/adapter/"
    fresh, got, initial = begun(start=rules, fresh=drawn_here, adapters=LORA)
    assert initial.tokenizer.to_json() == "a"
    for path, value in got.items():
        if path == "text/projection/kernel" or "/adapter/" in path:
            want = fresh[path]
        else:
            want = (texts if path.startswith("text/") else pictures)[path]
        np.testing.assert_array_equal(value, want, err_msg=path)
    assert sum("/adapter/" in path for path in got) == 4


def test_paths_are_put_elsewhere(weights):
    """The layers of the text encoder in both towers."""
    weights("first", 0)
    layers = "encoder/transformer/"
    rules = (
        dict(source="first", take=f"^(?!image/{layers})"),
        dict(source="first", take=f"^text/{layers}", cut="text/", put="image/"),
    )
    _, got, _ = begun(start=rules)
    moved = [path for path in got if path.startswith(f"image/{layers}")]
    assert moved
    for path in moved:
        np.testing.assert_array_equal(got[path], got[path.replace("image/", "text/", 1)])


@pytest.mark.parametrize(
    "rules, message",
    [
        (
            [dict(take="^sound/")],
            r"start\[0\].take: '\^sound/' takes none of the \d+ parameters of a",
        ),
        ([dict(take="^image/", cut="text/")], r"start\[0\].cut: 'text/' is not what image/"),
        ([{}, dict(take="^log_scale")], r"start\[1\]: log_scale is taken by a rule before already"),
        (
            [dict(put="text/")],
            r"start\[0\].take: takes \d+ parameters that have no place .* text/im",
        ),
        ([dict(source="wide")], r"start\[0\]: image/\S+ is \(.*\) in this run's model and \("),
        (
            [dict(source=("a", "b"))],
            r"start\[0\].source: 2 sources become the experts of a model, wh",
        ),
        (
            [dict(take="^image|^log"), dict(source="other", take="^text/e"), dict(take="^text/p")],
            None,
        ),
        (
            [dict(source="a", take="^text/"), dict(source="other", take="words", put="x/")],
            r"start: takes words of a and other, whose tokenizers differ; must be of one",
        ),
        ([dict(source="bright")], r"preprocess.mean: .* is not what the weights of bright were"),
        ([dict(take="(")], r"start\[0\].take: '\(' is not a regular expression"),
    ],
)
def test_what_does_not_fit_is_named(weights, rules, message):
    for name in ("a", "b"):
        weights(name, 0)
    weights("other", 1, words="others")
    weights("wide", 2, model=sized(width=24))
    weights("bright", 3, preprocess=Preprocess(image_size=16, mean=(0.1, 0.1, 0.1)))
    rules = [{"source": "a", **rule} for rule in rules]
    if message is None:
        assert begun(start=rules)[2].tokenizer.to_json() == "others"
        return
    with pytest.raises(ConfigError, match=message):
        begun(start=rules)


def test_positions_are_resampled_for_another_image_size(weights):
    arrays = weights("small", 0)
    larger = dict(image_size=32)
    _, got, _ = begun(start="small", preprocess=larger)
    path = "image/encoder/positions"
    want = jax.image.resize(arrays[path].reshape(2, 2, 16), (4, 4, 16), "bilinear")
    np.testing.assert_allclose(got[path], want.reshape(16, 16), atol=1e-6)
    assert got["text/encoder/positions"].shape == arrays["text/encoder/positions"].shape


def test_experts_of_several_dense_models(weights):
    """CLIP-MoE: expert e is the MLP of source e mod 2, everything else is the first's."""
    moe = dict(last=1, experts=4, bias=True, router=ROUTER)
    sources = [weights(name, seed) for seed, name in enumerate("ab")]
    model = sized(moe=moe)
    rules = (
        dict(source=("a", "b"), take="^image/encoder/"),
        dict(source="b", take="^text/|^log_scale$|^image/projection"),
    )
    fresh, got, _ = begun(start=rules, model=model)
    stack = "image/encoder/transformer"
    for e in range(4):
        for end in ("up/kernel", "up/bias", "down/kernel", "down/bias"):
            expert = got[f"{stack}/moe_blocks/moe/experts/{end}"][:, e]
            np.testing.assert_array_equal(expert, sources[e % 2][f"{stack}/blocks/mlp/{end}"])
    for path, value in got.items():
        if "/router/" in path:
            np.testing.assert_array_equal(value, fresh[path])
        elif "/experts/" not in path:
            one = sources[not path.startswith("image/encoder/")]
            want = one[path.replace("/moe_blocks/", "/blocks/")]
            np.testing.assert_array_equal(value, want, err_msg=path)
    with pytest.raises(ConfigError, match=r"start\[0\]: upcycle: .*: \['image\S*mlp/down/bias'"):
        begun(start="a", model=sized(moe={**moe, "bias": False}))


def test_older_ways_to_say_it():
    rule = (StartConfig("runs/a"),)
    for config in (dict(start="runs/a"), dict(start=["runs/a"]), dict(init_from="runs/a")):
        assert tiny.experiment(**config).start == rule
    assert tiny.experiment(init_from=None).start == ()
    with pytest.raises(ConfigError, match="init_from: stands beside start, which replaces it"):
        tiny.experiment(init_from="a", start="b")


# --------------------------------------------------------------------------------------------------
# Folders of other libraries, read as they are

CLIP = dict(
    name="dual_encoder",
    image=dict(
        name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="cls", pre_norm=True,
        patch_bias=False, activation="gelu", eps=1e-5,
    ),
    text=dict(
        name="text_transformer", variant="Ti", width=16, depth=1, heads=2, causal=True, pool="eos",
        positions=8, activation="gelu", eps=1e-5,
    ),
    embed_dim=8,
)  # fmt: skip
SIGLIP = dict(
    name="dual_encoder",
    image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="map"),
    text=dict(
        name="text_transformer", variant="Ti", width=16, depth=1, heads=2, mask_padding=False,
        pool="last", positions=8,
    ),
    projections="text", projection_bias=True, init_bias=-10.0, max_scale=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "library, model", [("hf", CLIP), ("open_clip", CLIP), ("big_vision", SIGLIP)]
)
def test_weights_of_other_libraries_are_read_where_they_lie(library, model, tmp_path):
    """Random weights in the library's own files, no network: every array comes through as it is,
    with the tokenizer of the words; an npz file has none, so that its image tower is taken."""
    words = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("ring", "star", "square")]
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=24), 9 * words)
    whole = library != "big_vision"
    inputs = InputSpec(16, 8, tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    config = choose(MODELS, model, "model")
    arrays = {p: np.asarray(a) for p, a in drawn(functional(config, inputs), 3).items()}
    resize = dict(resize="squash", interpolation="bilinear") if not whole else {}
    pictures = Preprocess(image_size=16, **resize)
    place = tmp_path / ("w.npz" if library == "big_vision" else "folder")
    bundle = Bundle(config, inputs, arrays, tokenizer if whole else None, pictures)
    LIBRARIES[library].save(bundle, place)

    rule = dict(source=f"{library}:{place}", take="" if whole else "^image/")
    fresh = "^$" if whole else "^text/|^log"
    experiment = tiny.experiment(
        model=model, start=(rule,), fresh=fresh, tokenizer={}, text_length=8,
        preprocess=dict(image_size=16, **resize), tasks={},
    )  # fmt: skip
    initial = start.initial_weights(experiment)
    built = build_model(experiment, initial.tokenizer or tokenizer)
    own = drawn(built, 100)
    parts = [{p: own[p] for p in part} for part in (built.params, built.model_state)]
    state = TrainState(0, None, *parts, None, {}, {}, {}, {})
    shardings = types.SimpleNamespace(
        params={p: replicated(MESH) for p in built.params}, model_state={}
    )
    state = initial.put_into(state, experiment, built, shardings)
    assert state.params.keys() == arrays.keys()
    for path, value in state.params.items():
        want = arrays[path] if whole or path.startswith("image/") else own[path]
        np.testing.assert_array_equal(value, want, err_msg=path)
    if whole:
        texts = ["blue star", "a red ring"]
        ids = [t.encode(texts, 8).tolist() for t in (initial.tokenizer, tokenizer)]
        assert ids[0] == ids[1]
    else:
        assert initial.tokenizer is None
        with pytest.raises(ConfigError, match="takes words of big_vision:.*which has no tokenizer"):
            start.initial_weights(
                dataclasses.replace(experiment, start=(StartConfig(rule["source"]),))
            )
