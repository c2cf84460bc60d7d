"""What every registered model promises, whoever wrote it: `encode` gives what its call is made of,
and it can do what it declares."""

import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import ALIGN, DUAL, SMALL_TEXT, SMALL_VIT, batch_of, with_options

from jaxvl.config import choose
from jaxvl.models import MODELS, InputSpec, Model, ModelConfig
from jaxvl.models.functional import functional

INPUTS = InputSpec(image_size=32, text_length=12, vocab_size=50, pad_id=0, eos_id=1)
B = 3
DECODER = dict(
    image=dict(SMALL_VIT, depth=1, pool="mean"),
    width=24,
    heads=2,
    unimodal=1,
    multimodal=1,
    queries=3,
    pooler_heads=2,
    embed_dim=8,
)
IMP = dict(
    variant="small",
    width=32,
    depth=1,
    heads=2,
    hidden=64,
    embed_dim=16,
    projection_hidden=24,
    inputs=("image", "text"),
    classes=dict(kind=5),
)
NODES = {
    "align": ALIGN,
    "dual_encoder": with_options(DUAL, image__depth=1, text__depth=1),
    "imp": IMP,
    "coca": DECODER,
    "cosmo": DECODER,
    "sycoca": DECODER,
    "frozen_encoders": dict(
        image=dict(SMALL_VIT, depth=1, pool="mean"),
        text=dict(DUAL["text"], depth=1, width=32),
        heads=dict(joint=dict(name="projection", reads=("image", "text"), dim=8)),
    ),
    "close": {
        **{k: v for k, v in DECODER.items() if k != "pooler_heads"},
        "text": dict(SMALL_TEXT, depth=1),
    },
    "open_clip_coca": dict(DECODER, image=dict(SMALL_VIT, depth=1, pool="cls"), start_id=2),
}
# Output of each side, and the linear map before it.
TOWERS = dict(image=("image", "image/projection"), text=("text", "text/projection"))
CAPTIONER = dict(image=("image", "image_projection"), text=("text", "text_projection"))
JOINT = {side: (side, "heads/joint/perceptron/linears/0") for side in ("image", "text")}
SIDES = {
    "align": TOWERS,
    "dual_encoder": TOWERS,
    "close": TOWERS,
    "imp": {},
    "frozen_encoders": JOINT,
}


def embedded(name, params, side, pooled):
    """Unit rows in float64 of what `encode` pools, and the output that they should be."""
    params = {path: np.float64(value) for path, value in params.items()}
    if name == "imp":
        output = {"image": "vision>text", "text": "text>vision"}[side]
        up, down = (f"projections/{output}/{part}" for part in ("up", "down"))
        hidden = pooled @ params[f"{up}/kernel"] + params[f"{up}/bias"]
        cubic = np.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)  # the tanh form of GELU
        hidden = 0.5 * hidden * (1 + np.tanh(cubic))
        rows = hidden @ params[f"{down}/kernel"] + params[f"{down}/bias"]
    else:
        output, projection = SIDES.get(name, CAPTIONER)[side]
        rows = pooled
        if f"{projection}/kernel" in params:
            rows = rows @ params[f"{projection}/kernel"] + params.get(f"{projection}/bias", 0.0)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True), output


@functools.cache
def built(name):
    config = choose(MODELS, dict(NODES[name], name=name), "model")
    model = functional(config, INPUTS)
    params, rest = model.init(jax.random.key(0))
    return config, model, params, rest


@pytest.mark.parametrize("name", MODELS)
def test_encode_is_what_the_call_is_made_of(name):
    _, model, params, rest = built(name)
    batch = batch_of(B, INPUTS)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def everything(params, batch):
        def of(*args, **kwargs):
            return model.apply(params, rest, *args, **kwargs)[0]

        return (
            of(batch, progress=jnp.float32(0.5)),
            {side: of(side, batch[side], method="encode") for side in batch},
            {side: of(batch[side], method=f"encode_{side}") for side in batch},
        )

    assert {"image", "text"} <= set(model.inputs)
    out, encoded, alone = everything(params, batch)
    for side, value in encoded.items():
        b, t, _ = value.tokens.shape
        assert (b, value.pooled.shape[0]) == (B, B)
        assert value.mask is None or (value.mask.shape, value.mask.dtype) == ((B, t), bool)
        rows, output = embedded(name, params, side, np.float64(value.pooled).reshape(B, -1))
        for found in (out[output], alone[side]):
            np.testing.assert_allclose(np.reshape(found, (B, -1)), rows, atol=1e-5, err_msg=side)


@pytest.mark.parametrize("name", MODELS)
def test_models_can_do_what_they_declare(name):
    config, model, params, rest = built(name)
    assert isinstance(config, ModelConfig) and issubclass(MODELS[name], ModelConfig)
    assert config.registered_name == name
    capabilities = config.capabilities(INPUTS)
    assert capabilities == config.capabilities()
    assert capabilities.generates == ({"memory", "caption_scores"} <= model.methods)
    assert capabilities.start_id is None or 0 <= capabilities.start_id < INPUTS.vocab_size
    assert set(config.encoders) <= set(model.inputs)
    texts = jax.ShapeDtypeStruct((B, 2, INPUTS.text_length), jnp.int32)
    if capabilities.multi_instance:
        apply = functools.partial(model.apply, method="encode")
        found = jax.eval_shape(lambda x: apply(params, rest, "text", x)[0].pooled, texts)
        assert found.shape[:2] == (B, 2)
    for head, count in capabilities.classes.items():
        assert [s.shape for p, s in model.params.items() if f"classes/{head}/bias" in p] == [
            (count,)
        ]


@pytest.mark.parametrize("name", MODELS)
def test_an_encoder_that_is_frozen_is_frozen_whole(name):
    """`optim.freeze` of all that an encoder has, its other state included."""
    config, model, _, _ = built(name)
    module = nnx.eval_shape(lambda: config.build(INPUTS, nnx.Rngs(params=0)))
    assert isinstance(module, Model)
    assert set(module.encoder_paths()) == set(config.encoders)
    for path in module.encoder_paths().values():
        inside = {p for p in (*model.params, *model.model_state) if p.startswith(f"{path}/")}
        assert inside and functional(config, INPUTS, freeze=rf"^{path}/").frozen == inside


# Parameters and other state, "PATH SHAPE" a line, of models that checkpoints have been written of.
PATHS = {
    "align": "7090a6bb4a2810dd",
    "dual_encoder": "5a5b6374bc057ed9",
    "imp": "5d165691c998cbdf",
    "coca": "5e70d49466240d29",
    "cosmo": "fffc56dc5efe2672",
    "sycoca": "9d38697f12ac86a8",
}


@pytest.mark.parametrize("name, digest", PATHS.items())
def test_checkpoints_find_their_parameters(name, digest):
    _, model, _, _ = built(name)
    parts = (model.params, model.model_state)
    lines = [f"{p} {tuple(s.shape)}" for part in parts for p, s in sorted(part.items())]
    found = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert found == digest, "checkpoints of this model would no longer load"
