"""Hugging Face transformers' `AlignModel` as `align`: configuration and table."""

from __future__ import annotations

import math

import numpy as np

from jaxvl.aliases import Json
from jaxvl.interop.bundle import Section, model_of, named_sizes
from jaxvl.interop.dual import must_be
from jaxvl.interop.hf_dual import ACTIVATIONS, activation_name
from jaxvl.interop.mapping import (
    CONVOLUTION,
    POINTWISE,
    ConversionError,
    Entries,
    Form,
    Source,
    attention,
    linear,
    norm,
)
from jaxvl.models import InputSpec
from jaxvl.models.align import AlignConfig
from jaxvl.models.bert import BERT_SIZES, BertConfig
from jaxvl.models.efficientnet import EfficientNetConfig
from jaxvl.models.efficientnet_variants import VARIANTS, parse_stage
from jaxvl.nn.transformer import Sizes

# Theirs is the temperature, ours the logarithm of its inverse.
TEMPERATURE = Form(lambda x: -np.log(x), lambda x: np.exp(-x))


LENGTH = 64  # tokens that AlignProcessor gives the model; its table has more positions
# channels of the stem before the width multiplier: written in their code, not in their
# configuration
STEM = 32
POOLER = "text_model.pooler.dense"


def read_align(config: Section) -> tuple[AlignConfig, InputSpec]:
    """Of an `AlignConfig`'s JSON. Raises ConversionError for what cannot be represented."""
    text = config.section("text_config")
    vision = config.section("vision_config")
    image_size = vision.size("image_size", 600)
    vocabulary = text.size("vocab_size", 30522)
    positions = text.size("max_position_embeddings", 512)
    width = config.size("projection_dim", 640)
    image = _read_image(vision, image_size)
    sizes = Sizes(
        text.size("hidden_size", 768), text.size("num_hidden_layers", 12), text.size("num_attention_heads", 12),
        text.size("intermediate_size", 3072),
    )  # fmt: skip
    model = model_of(dict(
        name="align", image=image,
        text=dict(
            **named_sizes(sizes, BERT_SIZES, "base"), name="bert", pool="cls", positions=positions, types=text.size("type_vocab_size", 2),
            activation=text.only("hidden_act", ACTIVATIONS, "gelu"), eps=text.number("layer_norm_eps", 1e-12),
            dropout=text.number("hidden_dropout_prob", 0.1), attention_dropout=text.number("attention_probs_dropout_prob", 0.1),
        ),
        init_temperature=config.number("temperature_init_value", 1.0),
    ))  # fmt: skip
    if width != model.image.features:
        raise config.refuse(
            "projection_dim",
            f"must be the {model.image.features} channels of the image, which texts are "
            f"compared with",
        )
    return model, InputSpec(
        image_size, min(positions, LENGTH), vocabulary, text.token("pad_token_id", 0), None
    )


def _read_image(vision: Section, image_size: int) -> dict[str, Json]:
    defaults = dict(
        kernel_sizes=(3, 3, 5, 3, 5, 5, 3), in_channels=(32, 16, 24, 40, 80, 112, 192), out_channels=(16, 24, 40, 80, 112, 192, 320),
        strides=(1, 2, 2, 2, 1, 2, 1), num_block_repeats=(1, 2, 2, 3, 3, 4, 1), expand_ratios=(1, 6, 6, 6, 6, 6, 6),
    )  # fmt: skip
    kernels, inputs, outputs, strides, repeats, expands = (
        list(vision.get(key, value)) for key, value in defaults.items()
    )
    if (
        not len(kernels)
        == len(inputs)
        == len(outputs)
        == len(strides)
        == len(repeats)
        == len(expands)
    ):
        raise vision.refuse(
            "kernel_sizes",
            "must be as many as in_channels, out_channels, strides, num_block_repeats and "
            "expand_ratios",
        )
    if not all(isinstance(k, int) and k % 2 for k in kernels):
        raise vision.refuse(
            "kernel_sizes", "must be odd numbers: an even one is not centred on its pixel"
        )
    if inputs != [STEM, *outputs[:-1]]:
        raise vision.refuse(
            "in_channels",
            f"must be {[STEM, *outputs[:-1]]}: the stem's, then what the stage before puts out",
        )
    vision.only("depth_divisor", (8,), 8)
    vision.only("num_channels", (3,), 3)
    squeeze = vision.number("squeeze_expansion_ratio", 0.25)
    stages = [
        f"mbconv_r{r}_k{k}_s{s}_e{e}_o{o}_se{squeeze:g}" for r, k, s, e, o in zip(repeats, kernels, strides, expands, outputs)
    ]  # fmt: skip
    pool = vision.only("pooling_type", ("mean", "max"), "mean")
    if vision.size("hidden_dim", 2560) < image_size // (2 * math.prod(strides)):
        raise vision.refuse(
            "hidden_dim",
            "is smaller than the last feature map, so that more than one vector would be pooled",
        )
    width = vision.number("width_coefficient", 2.0)
    depth = vision.number("depth_coefficient", 3.1)
    return dict(
        name="efficientnet", **_variant(width, depth, stages), norm_eps=vision.number("batch_norm_eps", 1e-3),
        norm_momentum=vision.number("batch_norm_momentum", 0.99), activation=vision.only("hidden_act", ACTIVATIONS, "swish"),
        drop_connect=vision.number("drop_connect_rate", 0.2), padding="bottom_right",
        symmetric_blocks=tuple(vision.get("depthwise_padding", ())), pool=pool,
    )  # fmt: skip


def _variant(width: float, depth: float, stages: list[str]) -> dict[str, Json]:
    for name, plan in VARIANTS.items():
        if (plan.width, plan.depth, plan.stem, list(plan.stages)) == (width, depth, STEM, stages):
            return {"variant": name}
    return {"variant": "b0", "width": width, "depth": depth, "stages": tuple(stages), "stem": STEM}


def write_align(model: AlignConfig, inputs: InputSpec) -> dict[str, Json]:
    """An `AlignConfig`'s JSON. Raises ConversionError where AlignModel has no counterpart."""
    must_be("AlignModel", model, {
        "image.norm": ("batch",), "image.stem_stride": (2,), "image.stem_patch": (1,), "image.head": (False,),
        "image.padding": ("same", "bottom_right"), "text.pool": ("cls",),
    })  # fmt: skip
    width = model.image.features
    if model.embed_dim not in (None, width):
        raise ConversionError(
            f"model.embed_dim: {model.embed_dim} has no counterpart in AlignModel, which uses "
            f"the image's {width} channels as they are"
        )
    text = model.text
    sizes = model.text.sizes
    return {
        "architectures": ["AlignModel"], "model_type": "align", "projection_dim": width, "temperature_init_value": model.init_temperature,
        "text_config": {
            "model_type": "align_text_model", "vocab_size": inputs.vocab_size, "hidden_size": sizes.width,
            "num_hidden_layers": sizes.depth, "num_attention_heads": sizes.heads, "intermediate_size": sizes.hidden,
            "hidden_act": activation_name(text.activation), "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.attention_dropout, "max_position_embeddings": text.positions,
            "type_vocab_size": text.types, "layer_norm_eps": text.eps, "pad_token_id": inputs.pad_id,
        },
        "vision_config": {"model_type": "align_vision_model", **_written_image(model.image, inputs)},
    }  # fmt: skip


def _written_image(config: EfficientNetConfig, inputs: InputSpec) -> dict[str, Json]:
    plan = VARIANTS[config.variant]
    stages = [parse_stage(s) for s in config.stages or plan.stages]
    stem = config.stem or plan.stem
    if stem != STEM:
        raise ConversionError(
            f"model.image.stem: {stem} has no counterpart in AlignModel, whose stem has "
            f"{STEM} channels"
        )
    squeezes = {s.squeeze for s in stages}
    odd = [s for s in stages if s.kind != "mbconv" or s.kernel % 2 == 0 or not s.squeeze]
    if odd or len(squeezes) > 1:
        raise ConversionError(
            "model.image.stages: AlignModel has mbconv stages of odd kernels and of one "
            "squeeze ratio only"
        )
    symmetric = (
        config.symmetric_blocks
        if config.padding == "bottom_right"
        else _odd_blocks(config, inputs.image_size)
    )
    return {
        "image_size": inputs.image_size, "num_channels": 3, "width_coefficient": plan.width if config.width is None else config.width,
        "depth_coefficient": plan.depth if config.depth is None else config.depth, "depth_divisor": 8,
        "kernel_sizes": [s.kernel for s in stages], "in_channels": [STEM, *(s.channels for s in stages[:-1])],
        "out_channels": [s.channels for s in stages], "strides": [s.stride for s in stages],
        "num_block_repeats": [s.repeats for s in stages], "expand_ratios": [s.expand for s in stages],
        "depthwise_padding": list(symmetric), "squeeze_expansion_ratio": squeezes.pop(), "hidden_act": activation_name(config.activation),
        "hidden_dim": 2560, "pooling_type": config.pool, "batch_norm_eps": config.norm_eps, "batch_norm_momentum": config.norm_momentum,
        "drop_connect_rate": config.drop_connect,
    }  # fmt: skip


def _odd_blocks(config: EfficientNetConfig, side: int) -> list[int]:
    """Blocks of stride 2 that see an odd side, where the rule `same` pads on all sides. Raises
    ConversionError for an odd picture."""
    if side % 2:
        raise ConversionError(
            f"preprocess.image_size: {side} is odd, and AlignModel's stem pads right and "
            f"below only; must be even"
        )
    side = side // 2
    number = 0
    found = []
    for stage in config.plan()[1]:
        if stage.stride == 2 and side % 2:
            found.append(number)
        side = -(-side // stage.stride)
        number = number + stage.repeats
    return found


def align_table(config: AlignConfig) -> Entries:
    """`AlignModel`, of an EfficientNet and a BERT."""
    yield from _efficientnet("image/encoder", "vision_model", config.image)
    yield from bert_table("text/encoder", "text_model", config.text)
    yield from linear("text/projection", "text_projection")
    yield "log_scale", Source("temperature", TEMPERATURE)


def unused(config: AlignConfig, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What AlignModel carries beside `state` and never uses, as zeros: BERT's pooler, and how many
    batches a batch norm has seen."""
    width = config.text.sizes.width
    counts = {
        name.replace("running_mean", "num_batches_tracked"): np.int64(0)
        for name in state
        if name.endswith("running_mean")
    }
    return {name: np.asarray(count) for name, count in counts.items()} | {
        f"{POOLER}.weight": np.zeros((width, width), np.float32),
        f"{POOLER}.bias": np.zeros(width, np.float32),
    }


def bert_table(ours: str, theirs: str, config: BertConfig) -> Entries:
    """BERT, with the prefix `theirs`."""
    sizes = config.sizes
    yield f"{ours}/words/embedding", Source(f"{theirs}.embeddings.word_embeddings.weight")
    yield f"{ours}/positions", Source(f"{theirs}.embeddings.position_embeddings.weight")
    yield f"{ours}/types/embedding", Source(f"{theirs}.embeddings.token_type_embeddings.weight")
    yield from norm(f"{ours}/norm", f"{theirs}.embeddings.LayerNorm")
    block = f"{ours}/transformer/blocks"
    layer = f"{theirs}.encoder.layer.{{i}}"
    n = sizes.depth
    names = {part: f"{layer}.attention.self.{part}" for part in ("query", "key", "value")} | {
        "out": f"{layer}.attention.output.dense"
    }
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
            yield from conv_norm(
                f"blocks/{i}/expand",
                f"{block}.expansion.expand_conv",
                f"{block}.expansion.expand_bn",
            )
        yield from conv_norm(
            f"blocks/{i}/filter",
            f"{block}.depthwise_conv.depthwise_conv",
            f"{block}.depthwise_conv.depthwise_norm",
        )
        for gate, name in (("down", "reduce"), ("up", "expand")):
            path = f"{ours}/blocks/{i}/gate/{gate}"
            yield (
                f"{path}/kernel",
                Source(f"{theirs}.{block}.squeeze_excite.{name}.weight", POINTWISE),
            )
            yield f"{path}/bias", Source(f"{theirs}.{block}.squeeze_excite.{name}.bias")
        yield from conv_norm(
            f"blocks/{i}/project",
            f"{block}.projection.project_conv",
            f"{block}.projection.project_bn",
        )
