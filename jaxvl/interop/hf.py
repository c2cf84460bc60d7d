"""Weights of Hugging Face transformers' `AlignModel`, `CLIPModel` and `SiglipModel`.

A mapping is data: pairs of our path and a `Source` that says which of their tensors it is read from and how. Nothing here
imports torch or transformers; a state dict of NumPy arrays is all that is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxvl.models.align import AlignConfig
from jaxvl.models.dual_encoder import DualEncoderConfig
from jaxvl.nn.transformer import Sizes

StateDict = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our arrays comes from.

    Attributes:
      name: their tensor; with `{i}` in it, one per layer, stacked.
      transform: from their array to ours.
      layers: number of layers of a stacked array.
    """

    name: str
    transform: Transform = lambda x: x
    layers: int = 0

    def names(self) -> list[str]:
        return [self.name.format(i=i) for i in range(self.layers)] if self.layers else [self.name]

    def read(self, state: StateDict) -> np.ndarray:
        """Raises KeyError where the state dict lacks the tensor."""
        arrays = [self.transform(np.asarray(state[name])) for name in self.names()]
        return np.stack(arrays) if self.layers else arrays[0]


def from_transformers(state: StateDict, config: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Our parameters and other state from their state dict.

    Args:
      state: `{name: array}`, as `{k: v.numpy() for k, v in model.state_dict().items()}`.
      config: of the model: `AlignConfig` with an EfficientNet and a BERT, or `DualEncoderConfig` in the shape of
        `presets.clip` or `presets.siglip`.

    Returns:
      (params, rest): flat, path -> float32 array, as `models.functional` has them.

    Raises:
      ValueError: tensors that the model needs and the state dict lacks, or that it has and the model has no use for.
    """
    params, rest = mapping(config)
    wanted = {name for source in (*params.values(), *rest.values()) for name in source.names()}
    given = {name for name in state if not name.endswith(("position_ids", "num_batches_tracked", "token_type_ids"))}
    unused = {name for name in given - wanted if not _spare(config, name)}
    missing = wanted - given
    if missing or unused:
        raise ValueError(f"state: tensors missing: {sorted(missing) or 'none'}; without a place in the model: {sorted(unused) or 'none'}")
    return tuple({path: source.read(state).astype(np.float32) for path, source in part.items()} for part in (params, rest))


def _spare(config: Any, name: str) -> bool:
    """BERT's pooler, which AlignModel carries and never uses, is left where our tower has none."""
    return isinstance(config, AlignConfig) and config.text.pool != "pooler" and name.startswith("text_model.pooler.")


def mapping(config: Any) -> tuple[dict[str, Source], dict[str, Source]]:
    """(params, rest): our path -> `Source`, for a model's configuration.

    Raises:
      ValueError: a configuration that transformers has no counterpart of.
    """
    towers = (config.image.registered_name, config.text.registered_name)
    if isinstance(config, AlignConfig) and towers == ("efficientnet", "bert"):
        return _align(config)
    if isinstance(config, DualEncoderConfig) and towers == ("vit", "text_transformer"):
        return dict(_siglip(config) if config.init_bias is not None else _clip(config)), {}
    raise ValueError(f"config: {type(config).__name__} of {towers[0]} and {towers[1]} has no counterpart in transformers")


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


def _hwio(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0)


def _linear(ours: str, theirs: str, layers: int = 0, bias: bool = True) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/kernel", Source(f"{theirs}.weight", _transpose, layers)
    if bias:
        yield f"{ours}/bias", Source(f"{theirs}.bias", layers=layers)


def _norm(ours: str, theirs: str, layers: int = 0) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/scale", Source(f"{theirs}.weight", layers=layers)
    yield f"{ours}/bias", Source(f"{theirs}.bias", layers=layers)


def _attention(ours: str, theirs: Mapping[str, str], heads: int, layers: int) -> Iterator[tuple[str, Source]]:
    """theirs: the names of `query`, `key`, `value`, `out`."""

    def split(x: np.ndarray) -> np.ndarray:  # [H K, D] -> [D, H, K]
        return x.T.reshape(x.shape[1], heads, -1)

    def merge(x: np.ndarray) -> np.ndarray:  # [D, H K] -> [H, K, D]
        return x.T.reshape(heads, -1, x.shape[0])

    for part in ("query", "key", "value"):
        yield f"{ours}/{part}/kernel", Source(f"{theirs[part]}.weight", split, layers)
        yield f"{ours}/{part}/bias", Source(f"{theirs[part]}.bias", lambda x: x.reshape(heads, -1), layers)
    yield f"{ours}/out/kernel", Source(f"{theirs['out']}.weight", merge, layers)
    yield f"{ours}/out/bias", Source(f"{theirs['out']}.bias", layers=layers)


def _pre_norm_stack(ours: str, theirs: str, sizes: Sizes) -> Iterator[tuple[str, Source]]:
    """The encoder layers of CLIP and SigLIP."""
    ours, theirs, n = f"{ours}/transformer/blocks", f"{theirs}.encoder.layers.{{i}}", sizes.depth
    names = {part: f"{theirs}.self_attn.{short}_proj" for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))}
    yield from _attention(f"{ours}/attention", names, sizes.heads, n)
    yield from _norm(f"{ours}/attention_norm", f"{theirs}.layer_norm1", n)
    yield from _norm(f"{ours}/mlp_norm", f"{theirs}.layer_norm2", n)
    yield from _linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", n)
    yield from _linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", n)


def _text_embeddings(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/words/embedding", Source(f"{theirs}.token_embedding.weight")
    yield f"{ours}/positions", Source(f"{theirs}.position_embedding.weight")


# ---------------------------------------------------------------------------------------------------------------------
# Models


def _clip(config: DualEncoderConfig) -> Iterator[tuple[str, Source]]:
    image, text = "image/encoder", "text/encoder"
    yield f"{image}/class_token", Source("vision_model.embeddings.class_embedding")
    yield f"{image}/patches/kernel", Source("vision_model.embeddings.patch_embedding.weight", _hwio)
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from _norm(f"{image}/pre_norm", "vision_model.pre_layrnorm")
    yield from _pre_norm_stack(image, "vision_model", config.image.sizes)
    yield from _norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from _linear("image/projection", "visual_projection", bias=False)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _pre_norm_stack(text, "text_model", config.text.sizes)
    yield from _norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from _linear("text/projection", "text_projection", bias=False)
    yield "log_scale", Source("logit_scale")


def _siglip(config: DualEncoderConfig) -> Iterator[tuple[str, Source]]:
    image, text, sizes = "image/encoder", "text/encoder", config.image.sizes
    yield f"{image}/patches/kernel", Source("vision_model.embeddings.patch_embedding.weight", _hwio)
    yield f"{image}/patches/bias", Source("vision_model.embeddings.patch_embedding.bias")
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from _pre_norm_stack(image, "vision_model", sizes)
    yield from _norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from _map_pooler(f"{image}/pooler", "vision_model.head", sizes)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _pre_norm_stack(text, "text_model", config.text.sizes)
    yield from _norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from _linear("text/projection", "text_model.head")
    yield "log_scale", Source("logit_scale", lambda x: x.reshape(()))
    yield "logit_bias", Source("logit_bias", lambda x: x.reshape(()))


def _map_pooler(ours: str, theirs: str, sizes: Sizes) -> Iterator[tuple[str, Source]]:
    width, heads = sizes.width, sizes.heads
    yield f"{ours}/query", Source(f"{theirs}.probe", lambda x: x[0])
    # torch's MultiheadAttention keeps query, key and value as thirds of one matrix.
    for i, part in enumerate(("query", "key", "value")):
        rows = slice(i * width, (i + 1) * width)
        yield (
            f"{ours}/attention/{part}/kernel",
            Source(f"{theirs}.attention.in_proj_weight", lambda x, rows=rows: x[rows].T.reshape(width, heads, -1)),
        )
        yield f"{ours}/attention/{part}/bias", Source(f"{theirs}.attention.in_proj_bias", lambda x, rows=rows: x[rows].reshape(heads, -1))
    yield f"{ours}/attention/out/kernel", Source(f"{theirs}.attention.out_proj.weight", lambda x: x.T.reshape(heads, -1, width))
    yield f"{ours}/attention/out/bias", Source(f"{theirs}.attention.out_proj.bias")
    yield from _norm(f"{ours}/norm", f"{theirs}.layernorm")
    yield from _linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1")
    yield from _linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2")


def _align(config: AlignConfig) -> tuple[dict[str, Source], dict[str, Source]]:
    params, rest = _efficientnet("image/encoder", "vision_model", config.image)
    params |= dict(_bert("text/encoder", "text_model", config.text))
    params |= dict(_linear("text/projection", "text_projection"))
    params["log_scale"] = Source("temperature", lambda x: -np.log(x))
    return params, rest


def _bert(ours: str, theirs: str, config: Any) -> Iterator[tuple[str, Source]]:
    sizes = config.sizes
    yield f"{ours}/words/embedding", Source(f"{theirs}.embeddings.word_embeddings.weight")
    yield f"{ours}/positions", Source(f"{theirs}.embeddings.position_embeddings.weight")
    yield f"{ours}/types/embedding", Source(f"{theirs}.embeddings.token_type_embeddings.weight")
    yield from _norm(f"{ours}/norm", f"{theirs}.embeddings.LayerNorm")
    block, layer, n = f"{ours}/transformer/blocks", f"{theirs}.encoder.layer.{{i}}", sizes.depth
    names = {part: f"{layer}.attention.self.{part}" for part in ("query", "key", "value")} | {"out": f"{layer}.attention.output.dense"}
    yield from _attention(f"{block}/attention", names, sizes.heads, n)
    yield from _norm(f"{block}/attention_norm", f"{layer}.attention.output.LayerNorm", n)
    yield from _linear(f"{block}/mlp/up", f"{layer}.intermediate.dense", n)
    yield from _linear(f"{block}/mlp/down", f"{layer}.output.dense", n)
    yield from _norm(f"{block}/mlp_norm", f"{layer}.output.LayerNorm", n)
    if config.pool == "pooler":
        yield from _linear(f"{ours}/pooler", f"{theirs}.pooler.dense")


def _efficientnet(ours: str, theirs: str, config: Any) -> tuple[dict[str, Source], dict[str, Source]]:
    params: dict[str, Source] = {}
    rest: dict[str, Source] = {}

    def conv_norm(part: str, conv: str, norm: str) -> None:
        params[f"{ours}/{part}/conv/kernel"] = Source(f"{theirs}.{conv}.weight", _hwio)
        params.update(_norm(f"{ours}/{part}/norm", f"{theirs}.{norm}"))
        rest[f"{ours}/{part}/norm/mean"] = Source(f"{theirs}.{norm}.running_mean")
        rest[f"{ours}/{part}/norm/var"] = Source(f"{theirs}.{norm}.running_var")

    conv_norm("stem", "embeddings.convolution", "embeddings.batchnorm")
    stages = [stage for stage in config.plan()[1] for _ in range(stage.repeats)]
    for i, stage in enumerate(stages):
        block = f"encoder.blocks.{i}"
        if stage.expand != 1:
            conv_norm(f"blocks/{i}/expand", f"{block}.expansion.expand_conv", f"{block}.expansion.expand_bn")
        conv_norm(f"blocks/{i}/filter", f"{block}.depthwise_conv.depthwise_conv", f"{block}.depthwise_conv.depthwise_norm")
        for gate, name in (("down", "reduce"), ("up", "expand")):
            path = f"{ours}/blocks/{i}/gate/{gate}"
            params[f"{path}/kernel"] = Source(f"{theirs}.{block}.squeeze_excite.{name}.weight", lambda x: x[:, :, 0, 0].T)
            params[f"{path}/bias"] = Source(f"{theirs}.{block}.squeeze_excite.{name}.bias")
        conv_norm(f"blocks/{i}/project", f"{block}.projection.project_conv", f"{block}.projection.project_bn")
    return params, rest
