"""Hugging Face transformers' `AlignModel`: where its tensors are in `align`."""

from __future__ import annotations

import numpy as np

from jaxvl.interop.mapping import CONVOLUTION, POINTWISE, Entries, Form, Source, attention, linear, norm
from jaxvl.models.align import AlignConfig
from jaxvl.models.bert import BertConfig
from jaxvl.models.efficientnet import EfficientNetConfig

# Theirs is the temperature, ours the logarithm of its inverse.
TEMPERATURE = Form(lambda x: -np.log(x), lambda x: np.exp(-x))


def align_table(config: AlignConfig) -> Entries:
    """`AlignModel`, of an EfficientNet and a BERT."""
    yield from _efficientnet("image/encoder", "vision_model", config.image)
    yield from bert_table("text/encoder", "text_model", config.text)
    yield from linear("text/projection", "text_projection")
    yield "log_scale", Source("temperature", TEMPERATURE)


def spare(config: AlignConfig) -> tuple[str, ...]:
    """BERT's pooler, which AlignModel carries and never uses, is left where our tower has none."""
    return () if config.text.pool == "pooler" else ("text_model.pooler.*",)


def bert_table(ours: str, theirs: str, config: BertConfig) -> Entries:
    """BERT, with the prefix `theirs`."""
    sizes = config.sizes
    yield f"{ours}/words/embedding", Source(f"{theirs}.embeddings.word_embeddings.weight")
    yield f"{ours}/positions", Source(f"{theirs}.embeddings.position_embeddings.weight")
    yield f"{ours}/types/embedding", Source(f"{theirs}.embeddings.token_type_embeddings.weight")
    yield from norm(f"{ours}/norm", f"{theirs}.embeddings.LayerNorm")
    block, layer, n = f"{ours}/transformer/blocks", f"{theirs}.encoder.layer.{{i}}", sizes.depth
    names = {part: f"{layer}.attention.self.{part}" for part in ("query", "key", "value")} | {"out": f"{layer}.attention.output.dense"}
    yield from attention(f"{block}/attention", names, sizes.heads, n)
    yield from norm(f"{block}/attention_norm", f"{layer}.attention.output.LayerNorm", n)
    yield from linear(f"{block}/mlp/up", f"{layer}.intermediate.dense", n)
    yield from linear(f"{block}/mlp/down", f"{layer}.output.dense", n)
    yield from norm(f"{block}/mlp_norm", f"{layer}.output.LayerNorm", n)
    if config.pool == "pooler":
        yield from linear(f"{ours}/pooler", f"{theirs}.pooler.dense")


def _efficientnet(ours: str, theirs: str, config: EfficientNetConfig) -> Entries:
    def conv_norm(part: str, conv: str, batch_norm: str) -> Entries:
        yield f"{ours}/{part}/conv/kernel", Source(f"{theirs}.{conv}.weight", CONVOLUTION)
        yield from norm(f"{ours}/{part}/norm", f"{theirs}.{batch_norm}")
        yield f"{ours}/{part}/norm/mean", Source(f"{theirs}.{batch_norm}.running_mean")
        yield f"{ours}/{part}/norm/var", Source(f"{theirs}.{batch_norm}.running_var")

    yield from conv_norm("stem", "embeddings.convolution", "embeddings.batchnorm")
    stages = [stage for stage in config.plan()[1] for _ in range(stage.repeats)]
    for i, stage in enumerate(stages):
        block = f"encoder.blocks.{i}"
        if stage.expand != 1:
            yield from conv_norm(f"blocks/{i}/expand", f"{block}.expansion.expand_conv", f"{block}.expansion.expand_bn")
        yield from conv_norm(f"blocks/{i}/filter", f"{block}.depthwise_conv.depthwise_conv", f"{block}.depthwise_conv.depthwise_norm")
        for gate, name in (("down", "reduce"), ("up", "expand")):
            path = f"{ours}/blocks/{i}/gate/{gate}"
            yield f"{path}/kernel", Source(f"{theirs}.{block}.squeeze_excite.{name}.weight", POINTWISE)
            yield f"{path}/bias", Source(f"{theirs}.{block}.squeeze_excite.{name}.bias")
        yield from conv_norm(f"blocks/{i}/project", f"{block}.projection.project_conv", f"{block}.projection.project_bn")
