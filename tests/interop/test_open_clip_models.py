"""open_clip's CLIP and SigLIP with the same random weights: outputs, there and back, both layouts
(no download)."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from interop_cases import (
    LENGTH,
    SIDE,
    VOCAB,
    check_same,
    images,
    library,
    ours_of,
    randomise,
    same_tensors,
    texts,
)

from jaxvl.interop import open_clip as ours
from jaxvl.interop import timm_vit
from jaxvl.interop.bundle import Section
from jaxvl.interop.mapping import ConversionError

torch = library("torch")
open_clip = library("open_clip")
timm = library("timm")
from timm.models import register_model  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


@register_model
def vit_test_siglip(pretrained=False, **kwargs):
    sizes = dict(img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5)
    kwargs = {
        k: v for k, v in kwargs.items() if not k.startswith("pretrained") and k != "cache_dir"
    }
    model = VisionTransformer(**sizes, **dict(dict(class_token=False, global_pool="map"), **kwargs))
    model.default_cfg = model.pretrained_cfg = {}
    return model


@register_model
def vit_test_token(pretrained=False, **kwargs):
    return vit_test_siglip(
        class_token=True,
        act_layer="quick_gelu",
        pre_norm=True,
        **{**kwargs, "global_pool": "token"},
    )


VISION = dict(image_size=SIDE, patch_size=8, layers=2, width=32, head_width=8, mlp_ratio=1.5)
TEXT = dict(context_length=LENGTH, vocab_size=VOCAB, width=24, heads=4, layers=2)
SIGLIP_TEXT = dict(
    TEXT, no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6)
)
TANH = dict(act_kwargs=dict(approximate="tanh"))


def config(vision=VISION, text=TEXT, **top):
    return dict(embed_dim=20, vision_cfg=dict(vision), text_cfg=dict(text), **top)


def trunk(name="vit_test_siglip", pool="map", proj="none", **more):
    return dict(
        image_size=SIDE,
        timm_model_name=name,
        timm_model_pretrained=False,
        timm_pool=pool,
        timm_proj=proj,
        **more,
    )


CASES = {
    "ViT-B-32": config(),
    "ViT-L-14-quickgelu": config(quick_gelu=True),
    "custom text, eos, scalar as a row": config(
        text=dict(TEXT, pool_type="eos", eos_id=VOCAB - 1, pad_id=1),
        custom_text=True,
        nonscalar_logit_scale=True,
    ),
    "CLIPA, tanh": config(
        dict(VISION, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, **TANH),
        dict(TEXT, no_causal_mask=True, pool_type="last", **TANH),
        init_logit_bias=-10,
    ),
    "ViT-B-16-SigLIP": {
        **config(trunk(), SIGLIP_TEXT, custom_text=True, init_logit_bias=-10),
        "embed_dim": 32,
    },
    "SigLIP2, uneven": {
        **config(dict(VISION, patch_size=7), dict(SIGLIP_TEXT, proj_bias=False, **TANH)),
        "init_logit_bias": -10,
    },
    "timm with a class token and a projection": config(
        trunk("vit_test_token", "token", "linear"), custom_text=True
    ),
}


def build(model_cfg):
    """Their model."""
    kwargs = copy.deepcopy(model_cfg)
    cls = (
        open_clip.model.CustomTextCLIP if kwargs.pop("custom_text", False) else open_clip.model.CLIP
    )
    return randomise(cls(**kwargs, output_dict=True))


def write(folder, model_cfg, state, preprocess=None, name="open_clip_pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}})
    )
    torch.save(state, folder / name)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_the_way_back(case, tmp_path):
    """Embeddings, scale and bias within 1e-4, in today's layout and the old one; open_clip loads
    what is written strictly."""
    model_cfg = CASES[case]
    theirs = build(model_cfg)
    write(tmp_path / "from", model_cfg, theirs.state_dict())
    bundle = ours.load(tmp_path / "from", "none")
    pad = model_cfg["text_cfg"].get("pad_id", 0)
    image = images()
    tokens = texts(pad, VOCAB - 1)
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), torch.from_numpy(tokens).long()
        )
    mine = ours_of(bundle, image, tokens)
    check_same(mine, out["image_features"], out["text_features"])
    np.testing.assert_allclose(
        np.exp(mine["log_scale"]), out["logit_scale"].numpy().reshape(()), rtol=1e-6
    )
    assert ("logit_bias" in mine) == ("init_logit_bias" in model_cfg)

    # The other layout of the same weights: `module.` before all, the text tower under `text.` or
    # not.
    custom = model_cfg.get("custom_text", False)
    towers = (
        "transformer",
        "token_embedding",
        "positional_embedding",
        "ln_final",
        "text_projection",
    )
    other = {
        k.removeprefix("text.") if custom else f"text.{k}" if k.startswith(towers) else k: v
        for k, v in theirs.state_dict().items()
    }
    write(
        tmp_path / "other", model_cfg, {"state_dict": {f"module.{k}": v for k, v in other.items()}}
    )
    for path, array in ours.load(tmp_path / "other", "none").arrays.items():
        np.testing.assert_array_equal(array, bundle.arrays[path])

    ours.save(bundle, tmp_path / "to")
    again = open_clip.create_model(f"local-dir:{tmp_path / 'to'}")
    same_tensors(theirs.state_dict(), again.state_dict())
    if "timm" not in str(model_cfg):  # and from our configuration alone
        ours.save(dataclasses.replace(bundle, origin={}), tmp_path / "new")
        again = open_clip.create_model(f"local-dir:{tmp_path / 'new'}", output_dict=True).eval()
        with torch.no_grad():
            back = again(
                torch.from_numpy(image.transpose(0, 3, 1, 2).copy()),
                torch.from_numpy(tokens).long(),
            )
        check_same(mine, back["image_features"], back["text_features"])


def known_names():
    return [n for n in timm.list_models("vit_*_siglip*") if timm_vit._NAME.fullmatch(n)]


@pytest.mark.parametrize(
    "names",
    [
        [
            "vit_base_patch16_siglip_384",
            "vit_base_patch32_siglip_gap_256",
            "vit_base_patch16_siglip_gap_224",
        ],
        pytest.param(known_names(), marks=pytest.mark.slow),
    ],
    ids=["base", "all"],
)
def test_timm_names_are_read_as_timm_has_them(names):
    """Sizes, patch, picture, activation and pool of the names that are known without timm, against
    timm's own models."""
    for name in names:
        pool = "avg" if "gap" in name else "map"
        known = timm_vit.trunk(name, pool)
        asked = timm_vit._inspected(name, pool)
        assert known == dataclasses.replace(
            asked, node={k: v for k, v in asked.node.items() if k not in ("patch_bias", "pre_norm")}
        ), name
        config = timm_vit.ViTConfig(**{k: v for k, v in known.node.items() if k != "name"})
        assert timm_vit.trunk(timm_vit.name_of(config, known.image_size), pool).node == known.node


@pytest.mark.parametrize("asked", ["families", pytest.param("all", marks=pytest.mark.slow)])
def test_every_configuration_that_open_clip_ships_is_read_or_refused_by_name(asked):
    """Those of the families must be read; any other is refused with a field's name (timm builds
    those: slow)."""
    read = []
    refused = {}
    for name in open_clip.list_models():
        trunk_name = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
        if asked == "families" and trunk_name and not timm_vit._NAME.fullmatch(trunk_name):
            continue
        try:
            model, inputs = ours.read_config(Section(open_clip.get_model_config(name), "model_cfg"))
            model.check_inputs(inputs)
            read.append(name)
        except ConversionError as error:
            refused[name] = str(error)
    assert not [
        n
        for n in refused
        if n.startswith(("ViT-", "coca_ViT", "coca_base")) and n != "ViT-M-16-alt"
    ], refused
    assert len(read) >= 70 and all(":" in message for message in refused.values())


REFUSED = {
    "vision_cfg.ls_init_value: 0.1": config(dict(VISION, ls_init_value=0.1)),
    "vision_cfg.layers: .* is a ResNet": config(dict(VISION, layers=[2, 2, 2, 2])),
    "text_cfg.hf_model_name: 'roberta-base'": config(text=dict(hf_model_name="roberta-base")),
    "text_cfg.pool_type: 'none'": config(text=dict(TEXT, pool_type="none")),
    "text_cfg.qk_norm: True": config(text=dict(TEXT, qk_norm=True)),
    "text_cfg.stray: 1; is not a field": config(text=dict(TEXT, stray=1)),
    "vision_cfg.final_ln_after_pool: .*True": config(dict(VISION, pool_type="avg")),
    "text_cfg.proj_bias: True; must be False": config(text=dict(TEXT, proj_bias=True)),
    "model.text.pool: 'cls'": config(text=dict(TEXT, pool_type="first")),
    "timm_model_name: 'resnet50' has the type 'ResNet'": config(trunk("resnet50", "avg")),
    "timm_model_name: 'vit_small_patch16_18x2_224' has the block": config(
        trunk("vit_small_patch16_18x2_224", "avg")
    ),
    "vision_cfg.image_size: 224; timm builds": config(
        dict(trunk("vit_base_patch16_siglip_384"), image_size=224)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(message):
    with pytest.raises(ConversionError, match=message):
        ours.read_config(Section(REFUSED[message], "model_cfg"))


def test_coca_travels_the_same_way(tmp_path):
    """Folder to ours and back, with the command's own parity check of embeddings and caption
    logits."""
    from jaxvl.interop.check import check_open_clip

    model_cfg = dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=dict(
            VISION,
            attentional_pool=True,
            attn_pooler_queries=5,
            attn_pooler_heads=2,
            output_tokens=True,
        ),
        text_cfg=dict(TEXT, width=32, embed_cls=True, output_tokens=True, context_length=LENGTH),
        multimodal_cfg=dict(context_length=LENGTH, vocab_size=VOCAB, width=32, heads=4, layers=2),
    )
    theirs = randomise(
        open_clip.CoCa(**{k: v for k, v in copy.deepcopy(model_cfg).items() if k != "custom_text"})
    )
    write(tmp_path / "from", model_cfg, theirs.state_dict())
    bundle = ours.load(tmp_path / "from", "none")
    rows = {row.output: row.largest for row in check_open_clip(bundle, tmp_path / "from")}
    assert (
        set(rows) == {"image embedding", "text embedding", "scale", "logits", "captions"}
        and max(rows.values()) < 1e-4
    ), rows
    ours.save(dataclasses.replace(bundle, origin={}), tmp_path / "to")
    same_tensors(
        theirs.state_dict(), open_clip.create_model(f"local-dir:{tmp_path / 'to'}").state_dict()
    )
