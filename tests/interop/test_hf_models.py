"""transformers' models with the same random weights: outputs, there and back, and parameter counts
(no download)."""

import copy
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop_cases import (
    LENGTH,
    SIDE,
    TEXT,
    VOCAB,
    check_same,
    images,
    library,
    ours_of,
    randomise,
    same_tensors,
    texts,
)

from jaxvl.config import choose
from jaxvl.interop import hf, hf_align, hf_dual
from jaxvl.interop.bundle import Section
from jaxvl.interop.hf_align import bert_table
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import MODELS, InputSpec, presets
from jaxvl.models.bert import BertConfig
from jaxvl.models.functional import functional

torch = library("torch")
transformers = library("transformers")
VISION = dict(TEXT, image_size=SIDE, patch_size=8)
ALIGN_VISION = dict(
    width_coefficient=0.5,
    depth_coefficient=1.2,
    hidden_dim=256,
    kernel_sizes=[3, 5, 3],
    in_channels=[32, 16, 24],
    out_channels=[16, 24, 48],
    strides=[1, 2, 2],
    num_block_repeats=[1, 2, 1],
    expand_ratios=[1, 6, 4],
)


def clip(eos=VOCAB - 1, act="quick_gelu", patch=8, **text):
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=dict(
                TEXT,
                vocab_size=VOCAB,
                max_position_embeddings=LENGTH,
                eos_token_id=eos,
                hidden_act=act,
                **text,
            ),
            vision_config=dict(VISION, hidden_act=act, patch_size=patch, num_attention_heads=2),
            projection_dim=20,
        )
    )


def siglip(version="Siglip", patch=8, width=32, act="gelu_pytorch_tanh"):
    sizes = dict(image_size=SIDE) if version == "Siglip" else dict(num_patches=(SIDE // patch) ** 2)
    text = dict(
        TEXT,
        hidden_size=width,
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        projection_size=32,
        hidden_act=act,
    )
    vision = dict(TEXT, patch_size=patch, hidden_act=act, **sizes)
    config = getattr(transformers, f"{version}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{version}Model")(config)


def align(size=64, symmetric=()):
    return transformers.AlignModel(
        transformers.AlignConfig(
            text_config=dict(TEXT, vocab_size=VOCAB, max_position_embeddings=20),
            projection_dim=24,
            vision_config=dict(ALIGN_VISION, image_size=size, depthwise_padding=list(symmetric)),
        )
    )


def theirs_of(model, image, tokens):
    """Their output, of the test's own call."""
    ids = dict(input_ids=torch.from_numpy(tokens).long())
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    if model.config.model_type == "align":
        ids["attention_mask"] = ids["input_ids"] != 0
    if model.config.model_type == "siglip2":
        patch = model.config.vision_config.patch_size
        cut = torch.nn.functional.unfold(pixels, patch, stride=patch).transpose(
            1, 2
        )  # [B, P, C p p]
        pixels = cut.reshape(*cut.shape[:2], 3, patch * patch).transpose(2, 3).flatten(2)
        side = image.shape[1] // patch
        ids |= dict(
            pixel_attention_mask=torch.ones(pixels.shape[:2]),
            spatial_shapes=torch.full((len(image), 2), side),
        )
    with torch.no_grad():
        return model(pixel_values=pixels, **ids)


CASES = {
    "clip": clip,
    "clip, gelu, legacy eos": lambda: clip(eos=2, act="gelu"),
    "siglip": lambda: siglip(width=24, act="gelu"),
    "siglip, uneven patches": lambda: siglip(patch=7),
    "siglip2": lambda: siglip("Siglip2"),
    "align, odd sides": lambda: align(50, (2,)),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_the_way_back(case, tmp_path):
    """Embeddings and logits within 1e-4, and the folder that is written loads with the very
    tensors, all of them."""
    theirs = randomise(CASES[case]())
    kind = theirs.config.model_type
    theirs.save_pretrained(tmp_path / "from", max_shard_size="40KB" if case == "clip" else "5GB")
    bundle = hf.load(tmp_path / "from", "none")
    tokens = texts(
        pad=0 if kind == "align" else 1, eos=VOCAB - 1, first=2 if kind == "align" else None
    )
    image = images(bundle.inputs.image_size)
    out = theirs_of(theirs, image, tokens)
    ours = ours_of(bundle, image, tokens)
    check_same(ours, out.image_embeds, out.text_embeds)
    logits = np.exp(ours["log_scale"]) * ours["image"] @ ours["text"].T + ours.get("logit_bias", 0)
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), atol=1e-4)

    # Without `origin` the configuration is written from ours alone.
    for name, origin in (("same", bundle.origin), ("new", {"hf": {"model_type": kind}})):
        hf.save(hf.dataclasses.replace(bundle, origin=origin), tmp_path / name)
        again, info = type(theirs).from_pretrained(tmp_path / name, output_loading_info=True)
        assert (
            not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        )
        state = theirs.state_dict()
        unused = {k: v for k, v in again.state_dict().items() if k.startswith("text_model.pooler")}
        same_tensors({**state, **unused}, again.state_dict(), rtol=1e-6 if kind == "align" else 0)
        back = theirs_of(again.eval(), image, tokens)
        np.testing.assert_allclose(
            back.logits_per_image.numpy(), out.logits_per_image.numpy(), atol=1e-5
        )


def test_align_of_even_sides_is_written_with_our_own_padding_rule(tmp_path):
    """A model of ours pads as TensorFlow does; where a stride-2 block sees an odd side, theirs must
    pad it on all sides."""
    theirs = randomise(
        align(52, (2,))
    )  # 52 -> 26 -> 26 -> 13 | 13 -> 7: block 1 sees 26, the last 13
    theirs.save_pretrained(tmp_path / "from")
    bundle = hf.load(tmp_path / "from", "none")
    image = hf.dataclasses.replace(bundle.model.image, padding="same", symmetric_blocks=())
    bundle = hf.dataclasses.replace(
        bundle, model=hf.dataclasses.replace(bundle.model, image=image), origin={}
    )
    hf.save(bundle, tmp_path / "to")
    again = transformers.AlignModel.from_pretrained(tmp_path / "to").eval()
    pixels = images(52)
    tokens = texts(0, VOCAB - 1, first=2)
    out = theirs_of(again, pixels, tokens)
    check_same(ours_of(bundle, pixels, tokens), out.image_embeds, out.text_embeds)


def test_align_pooler():
    config = transformers.AlignTextConfig(**TEXT, vocab_size=60, max_position_embeddings=20)
    theirs = randomise(transformers.AlignTextModel(config))
    tokens = texts(pad=0, eos=58, first=57, length=14)
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy((tokens != 0).astype(np.int64)),
        )
    sizes = dict(width=32, hidden=48, depth=2, heads=4)
    ours = BertConfig(**sizes, positions=20, pool="pooler").build(
        InputSpec(8, 14, 60), nnx.Rngs(params=0)
    )
    state = {f"text_model.{k}": v.numpy() for k, v in theirs.state_dict().items()}
    for path, variable in nnx.to_flat_state(nnx.state(ours, nnx.Param)):
        variable[...] = jnp.asarray(
            dict(bert_table("", "text_model", BertConfig(**sizes, pool="pooler")))[
                "/" + "/".join(path)
            ].read(state)
        )
    encoded = ours(jnp.asarray(tokens))
    np.testing.assert_allclose(encoded.pooled, wanted.pooler_output.numpy(), atol=1e-4)
    seen = tokens != 0
    np.testing.assert_allclose(
        np.asarray(encoded.tokens)[seen], wanted.last_hidden_state.numpy()[seen], atol=1e-4
    )


REFUSED = {
    "text_config.hidden_act: 'gelu_10'": lambda c: c["text_config"].update(hidden_act="gelu_10"),
    "vision_config.vision_use_head: False": lambda c: c["vision_config"].update(
        vision_use_head=False
    ),
    "text_config.projection_size: 16": lambda c: c["text_config"].update(projection_size=16),
    r"vision_config.image_size: \[24, 32\]": lambda c: c["vision_config"].update(
        image_size=[24, 32]
    ),
    "model.text.heads: 5 must divide": lambda c: c["text_config"].update(num_attention_heads=5),
    "model_type: 'bert'": lambda c: c.update(model_type="bert"),
    r"vision_model.embeddings.position_embedding.weight \[9, 32\]": lambda c: c[
        "vision_config"
    ].update(image_size=32),
    "tensors missing: .*layers.2.*without a place in the model: none": lambda c: c[
        "text_config"
    ].update(num_hidden_layers=3),
    "tensors missing: none; without a place in the model: text_model.*layers.1": lambda c: c[
        "text_config"
    ].update(num_hidden_layers=1),
}


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    siglip().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(message, siglip_folder):
    path = siglip_folder / "config.json"
    before = path.read_text()
    config = json.loads(before)
    REFUSED[message](config)
    path.write_text(json.dumps(config))
    try:
        with pytest.raises(ConversionError, match=message):
            hf.load(siglip_folder, "none")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("values", [dict(hidden_size=48, num_attention_heads=3), {}])
def test_a_configuration_of_2022_counts_with_its_defaults(values):
    """`text_config_dict` is the whole of the text tower, as transformers reads it: what it does not
    say is the default."""
    node = dict(
        model_type="clip",
        text_config=dict(hidden_act="gelu", layer_norm_eps=1e-3),
        text_config_dict=values,
    )
    model, inputs = hf_dual.read_clip(Section(node))
    theirs = transformers.CLIPConfig(**copy.deepcopy(node)).text_config
    text = model.text
    assert (
        (text.activation, text.eps)
        == (theirs.hidden_act, theirs.layer_norm_eps)
        == ("quick_gelu", 1e-5)
    )
    assert (text.sizes.width, text.sizes.heads, text.sizes.hidden) == (
        theirs.hidden_size,
        theirs.num_attention_heads,
        theirs.intermediate_size,
    )
    assert inputs.eos_id == theirs.eos_token_id


@pytest.mark.parametrize(
    "read, node, message",
    [
        (
            hf_align.read_align,
            dict(vision_config=dict(kernel_sizes=[3, 4, 5, 3, 5, 5, 3])),
            "vision_config.kernel_sizes: .*must be odd numbers",
        ),
        (
            hf_align.read_align,
            dict(text_config=dict(pad_token_id="a")),
            "text_config.pad_token_id: 'a'; must be the id of a token",
        ),
        (hf_dual.read_clip, dict(text_config=3), "text_config: 3 must be a group of keys"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(read, node, message):
    with pytest.raises(ConversionError, match=message):
        read(Section(node))


# --------------------------------------------------------------------------------------------------
# Full size, by shapes only


def theirs_on_meta(cls, config):
    with torch.device("meta"):
        return sum(p.numel() for p in cls(config).parameters())


def count(node, inputs):
    return sum(
        math.prod(s.shape)
        for s in functional(choose(MODELS, node, "model"), inputs).params.values()
    )


def test_count_clip_b32():
    ours = count(presets.clip("B/32"), InputSpec(224, 77, 49408, eos_id=49407))
    assert ours == theirs_on_meta(transformers.CLIPModel, transformers.CLIPConfig())


def test_count_siglip_b16():
    ours = count(presets.siglip("B/16"), InputSpec(224, 64, 32000, pad_id=1))
    assert ours == theirs_on_meta(transformers.SiglipModel, transformers.SiglipConfig())


def test_count_align():
    theirs = theirs_on_meta(transformers.AlignModel, transformers.AlignConfig())
    inputs = InputSpec(289, 64, 30522)
    node = presets.align("b7", "base")
    # AlignModel carries BERT's pooler (768² + 768), which its embeddings do not pass through.
    assert count(node, inputs) == theirs - (768 * 768 + 768)
    node["text"]["pool"] = "pooler"
    assert count(node, inputs) == theirs


def test_published_configurations_are_our_presets():
    """The defaults of their configuration classes are openai/clip-vit-base-patch32 and
    google/siglip-base-patch16-224."""
    for config, node in (
        (transformers.CLIPConfig(), presets.clip("B/32")),
        (transformers.SiglipConfig(), presets.siglip("B/16")),
    ):
        read = hf.FAMILIES[config.model_type].read(hf.Section(json.loads(config.to_json_string())))[
            0
        ]
        assert read == choose(MODELS, node, "model")
        assert (
            read
            == hf.FAMILIES[config.model_type].read(hf.Section({"model_type": config.model_type}))[0]
        )  # all by default
