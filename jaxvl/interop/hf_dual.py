"""Hugging Face transformers' `CLIPModel` and `SiglipModel`: where their tensors are in `dual_encoder`."""

from __future__ import annotations

from jaxvl.interop.mapping import CONVOLUTION, LEADING, ONE, Entries, Source, attention, linear, multihead_attention, norm
from jaxvl.models.dual_encoder import DualEncoderConfig
from jaxvl.nn.transformer import Sizes


def clip_table(config: DualEncoderConfig) -> Entries:
    """`CLIPModel`, of a configuration in the shape of `presets.clip`."""
    image, text = "image/encoder", "text/encoder"
    yield f"{image}/class_token", Source("vision_model.embeddings.class_embedding")
    yield f"{image}/patches/kernel", Source("vision_model.embeddings.patch_embedding.weight", CONVOLUTION)
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from norm(f"{image}/pre_norm", "vision_model.pre_layrnorm")
    yield from _layers(image, "vision_model", config.image.sizes)
    yield from norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from linear("image/projection", "visual_projection", bias=False)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _layers(text, "text_model", config.text.sizes)
    yield from norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from linear("text/projection", "text_projection", bias=False)
    yield "log_scale", Source("logit_scale")


def siglip_table(config: DualEncoderConfig) -> Entries:
    """`SiglipModel`, of a configuration in the shape of `presets.siglip`."""
    image, text, sizes = "image/encoder", "text/encoder", config.image.sizes
    yield f"{image}/patches/kernel", Source("vision_model.embeddings.patch_embedding.weight", CONVOLUTION)
    yield f"{image}/patches/bias", Source("vision_model.embeddings.patch_embedding.bias")
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from _layers(image, "vision_model", sizes)
    yield from norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from _map_pooler(f"{image}/pooler", "vision_model.head", sizes)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _layers(text, "text_model", config.text.sizes)
    yield from norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from linear("text/projection", "text_model.head")
    yield "log_scale", Source("logit_scale", ONE)
    yield "logit_bias", Source("logit_bias", ONE)


def _layers(ours: str, theirs: str, sizes: Sizes) -> Entries:
    """The pre-norm encoder layers."""
    ours, theirs, n = f"{ours}/transformer/blocks", f"{theirs}.encoder.layers.{{i}}", sizes.depth
    names = {part: f"{theirs}.self_attn.{short}_proj" for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))}
    yield from attention(f"{ours}/attention", names, sizes.heads, n)
    yield from norm(f"{ours}/attention_norm", f"{theirs}.layer_norm1", n)
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.layer_norm2", n)
    yield from linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", n)
    yield from linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", n)


def _text_embeddings(ours: str, theirs: str) -> Entries:
    yield f"{ours}/words/embedding", Source(f"{theirs}.token_embedding.weight")
    yield f"{ours}/positions", Source(f"{theirs}.position_embedding.weight")


def _map_pooler(ours: str, theirs: str, sizes: Sizes) -> Entries:
    yield f"{ours}/query", Source(f"{theirs}.probe", LEADING)
    yield from multihead_attention(f"{ours}/attention", f"{theirs}.attention", sizes.heads)
    yield from norm(f"{ours}/norm", f"{theirs}.layernorm")
    yield from linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1")
    yield from linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2")
