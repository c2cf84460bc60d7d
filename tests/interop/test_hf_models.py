"""Outputs with the same random weights, and parameter counts, against transformers (no download)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import count, model_of, torch_and_transformers

from jaxvl.interop.hf import from_transformers
from jaxvl.interop.hf_align import bert_table
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import InputSpec, presets
from jaxvl.models.bert import BertConfig

torch, transformers = torch_and_transformers()

TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
OURS = dict(width=32, hidden=48, depth=3, heads=4)


def randomise(model):
    """Weights away from their initial values, so that no scale of one or bias of zero hides an error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "temperature" in name or "logit" in name:
                p.copy_(torch.full_like(p, 0.7))
                continue
            spread = 0.3 if p.ndim == 1 else 1.5 / math.sqrt(p[0].numel())
            mean = 1.0 if ("norm" in name.lower() or "bn" in name) and name.endswith("weight") else 0.0
            p.copy_(mean + spread * torch.randn(p.shape, generator=generator))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return model.eval()


def outputs_of(theirs, node, inputs, image, tokens, **hf):
    """((their image, text), (our outputs)) as arrays, from the weights of `theirs`."""
    with torch.no_grad():
        out = theirs(pixel_values=torch.from_numpy(image.transpose(0, 3, 1, 2)), input_ids=torch.from_numpy(tokens).long(), **hf)
    model, config = model_of(node, inputs)
    arrays = from_transformers({k: v.numpy() for k, v in theirs.state_dict().items()}, config, shapes_of(model))
    params, rest = ({p: arrays[p] for p in part} for part in (model.params, model.rest))
    ours, _ = jax.jit(model.apply)(params, rest, dict(image=jnp.asarray(image), text=jnp.asarray(tokens)))
    return out, ours


def shapes_of(model):
    return {p: s.shape for part in (model.params, model.rest) for p, s in part.items()}


def images(size, batch=3):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def texts(batch, length, vocab, pad, eos, first=None):
    """Random tokens of growing length, EOS, padding."""
    rng = np.random.default_rng(1)
    tokens = np.full((batch, length), pad, np.int32)
    for row in range(batch):
        n = length - 1 - 2 * row
        tokens[row, :n] = rng.integers(5, vocab - 2, n)
        tokens[row, n] = eos
    if first is not None:
        tokens[:, 0] = first
    return tokens


def check_same(out, ours):
    for side, theirs in (("image", out.image_embeds), ("text", out.text_embeds)):
        theirs = theirs / theirs.norm(dim=-1, keepdim=True)
        np.testing.assert_allclose(ours[side], theirs.numpy(), atol=1e-4, rtol=0, err_msg=side)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation):
    config = transformers.CLIPConfig(
        text_config=dict(**TEXT, vocab_size=60, max_position_embeddings=16, eos_token_id=59, hidden_act=activation),
        vision_config=dict(**TEXT, image_size=24, patch_size=8, hidden_act=activation),
        projection_dim=20,
    )
    node = presets.clip("B/8", activation)
    node["image"].update(OURS)
    node["text"].update(OURS, positions=16)
    node["embed_dim"] = 20
    tokens = texts(3, 16, 60, pad=0, eos=59)
    out, ours = outputs_of(randomise(transformers.CLIPModel(config)), node, InputSpec(24, 16, 60, pad_id=0, eos_id=59), images(24), tokens)
    check_same(out, ours)
    logits = np.exp(ours["log_scale"]) * ours["image"] @ ours["text"].T
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), atol=1e-4)


def test_siglip():
    config = transformers.SiglipConfig(
        text_config=dict(**TEXT, vocab_size=60, max_position_embeddings=12), vision_config=dict(**TEXT, image_size=24, patch_size=8)
    )
    node = presets.siglip("B/8")
    node["image"].update(OURS)
    node["text"].update(OURS, positions=12)
    tokens = texts(3, 12, 60, pad=1, eos=59)
    out, ours = outputs_of(
        randomise(transformers.SiglipModel(config)), node, InputSpec(24, 12, 60, pad_id=1, eos_id=59), images(24), tokens
    )
    check_same(out, ours)
    logits = np.exp(ours["log_scale"]) * ours["image"] @ ours["text"].T + ours["logit_bias"]
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), atol=1e-4)


@pytest.mark.parametrize("size, symmetric", [(64, ()), (50, (2,))])
def test_align(size, symmetric):
    vision = dict(
        image_size=size, width_coefficient=0.5, depth_coefficient=1.2, hidden_dim=256, kernel_sizes=[3, 5, 3], in_channels=[32, 16, 24],
        out_channels=[16, 24, 48], strides=[1, 2, 2], num_block_repeats=[1, 2, 1], expand_ratios=[1, 6, 4], depthwise_padding=list(symmetric),
    )  # fmt: skip
    config = transformers.AlignConfig(
        text_config=dict(**TEXT, vocab_size=60, max_position_embeddings=20), vision_config=vision, projection_dim=24
    )
    stages = ("mbconv_r1_k3_s1_e1_o16_se0.25", "mbconv_r2_k5_s2_e6_o24_se0.25", "mbconv_r1_k3_s2_e4_o48_se0.25")
    node = presets.align()
    node["image"].update(width=0.5, depth=1.2, stages=stages, padding="bottom_right", symmetric_blocks=symmetric)
    node["text"].update(OURS, positions=20, pool="cls")
    tokens = texts(3, 14, 60, pad=0, eos=58, first=57)
    attention = dict(attention_mask=torch.from_numpy((tokens != 0).astype(np.int64)))
    out, ours = outputs_of(randomise(transformers.AlignModel(config)), node, InputSpec(size, 14, 60), images(size), tokens, **attention)
    check_same(out, ours)
    np.testing.assert_allclose(np.exp(-ours["log_scale"]), 0.7, rtol=1e-6)


def test_align_pooler():
    config = transformers.AlignTextConfig(**TEXT, vocab_size=60, max_position_embeddings=20)
    theirs = randomise(transformers.AlignTextModel(config))
    tokens = texts(3, 14, 60, pad=0, eos=58, first=57)
    with torch.no_grad():
        wanted = theirs(input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy((tokens != 0).astype(np.int64)))
    ours = BertConfig(**OURS, positions=20, pool="pooler").build(InputSpec(8, 14, 60), nnx.Rngs(params=0))
    state = {f"text_model.{k}": v.numpy() for k, v in theirs.state_dict().items()}
    for path, variable in nnx.to_flat_state(nnx.state(ours, nnx.Param)):
        variable[...] = jnp.asarray(dict(bert_table("", "text_model", BertConfig(**OURS, pool="pooler")))["/" + "/".join(path)].read(state))
    encoded = ours(jnp.asarray(tokens))
    np.testing.assert_allclose(encoded.pooled, wanted.pooler_output.numpy(), atol=1e-4)
    seen = tokens != 0
    np.testing.assert_allclose(np.asarray(encoded.tokens)[seen], wanted.last_hidden_state.numpy()[seen], atol=1e-4)


def test_missing_and_unknown_tensors_are_named():
    node = presets.clip("B/8")
    node["image"].update(OURS)
    node["text"].update(OURS)
    model, config = model_of(node, InputSpec(24, 16, 60, eos_id=59))
    with pytest.raises(ConversionError, match=r"missing: logit_scale, .* more; without a place in the model: stray"):
        from_transformers({"stray": np.zeros(1)}, config, shapes_of(model))


# ---------------------------------------------------------------------------------------------------------------------
# Full size, by shapes only


def theirs_on_meta(cls, config):
    with torch.device("meta"):
        return sum(p.numel() for p in cls(config).parameters())


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
