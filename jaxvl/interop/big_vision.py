"""big_vision's two-tower models (SigLIP, LiT) in npz files, to and from.

A file has no configuration beside it: sizes are read off the arrays, and what they do not show is
as in SigLIP's published models (tanh GELU, texts pooled at the last position). Arrays are laid out
as ours, so that a round trip changes no bit.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.interop.bundle import Bundle, built, model_of, shapes_of, without_limit
from jaxvl.interop.dual import must_be, text_node, vit_node
from jaxvl.interop.files import read_npz
from jaxvl.interop.mapping import (
    LEADING,
    ONE,
    ConversionError,
    Entries,
    Source,
    read_arrays,
    write_arrays,
)
from jaxvl.interop.tokens import find_tokenizer, read_tokenizer, with_tokens
from jaxvl.models import InputSpec
from jaxvl.models.dual_encoder import DualEncoderConfig
from jaxvl.nn.transformer import Sizes

SPARE = (
    "opt/*",
    "extra/*",
)  # the optimiser's state and the data's position of a training checkpoint
ROOT = "params/"
C4_EN = 32000  # pieces of SigLIP's English vocabulary, which its configurations pad with 1, its EOS
HOLDS_TOKENIZER = False  # whether the tokenizer lies beside the weights


def load(path: pathlib.Path, tokenizer: str | None = None) -> Bundle:
    """A model from an npz file.

    Args:
      tokenizer: a folder with the SentencePiece model, as the file has none beside it; `none`: it
        is left behind.

    Raises:
      ConversionError: see the command `jaxvl.convert`.
    """
    state = {name: _plain(array) for name, array in read_npz(path).items()}
    root = ROOT if any(name.startswith(ROOT) for name in state) else ""
    model, inputs, scanned = read_config(state, root)
    found = find_tokenizer(tokenizer, lambda folder: _tokenizer(folder, inputs))
    arrays = read_arrays(
        dict(table(model, root, scanned)), state, shapes_of(built(model, inputs)), SPARE
    )
    notes = (
        (
            "an npz file does not say how pictures were scaled nor how texts are pooled: taken "
            "as in SigLIP (squashed, last position)"
        ),
    )
    preprocess = Preprocess(inputs.image_size, resize="squash", interpolation="bilinear")
    origin = {"big_vision": {"root": root, "scanned": list(scanned)}}
    return Bundle(
        without_limit(model, arrays),
        with_tokens(model, inputs, found),
        arrays,
        found,
        preprocess,
        origin,
        notes,
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """npz files know no bfloat16 and keep it as two raw bytes."""
    return (
        array.view(ml_dtypes.bfloat16).astype(np.float32)
        if array.dtype == np.dtype("V2")
        else array
    )


def read_config(
    state: Mapping[str, np.ndarray], root: str
) -> tuple[DualEncoderConfig, InputSpec, tuple[bool, bool]]:
    """(model, inputs, whether the layers of the image and of the text tower are stacked in one
    array).

    Raises:
      ConversionError: arrays of another model.
    """

    def shape(name: str) -> tuple[int, ...]:
        if root + name not in state:
            raise ConversionError(
                f"{root}{name}: is missing; a two-tower model of big_vision has params/img/… "
                f"and params/txt/…"
            )
        return state[root + name].shape

    image, image_scanned = _sizes(state, f"{root}img/Transformer")
    text, text_scanned = _sizes(state, f"{root}txt/Encoder_0")
    patch, _, channels, _ = shape("img/embedding/kernel")
    if channels != 3:
        raise ConversionError(f"{root}img/embedding/kernel: reads {channels} channels; must be 3")
    if f"{root}img/cls" in state:
        raise ConversionError(
            f"{root}img/cls: a class token without a position has no counterpart here; MAP "
            f"heads and mean pooling have"
        )
    pool = "map" if f"{root}img/MAPHead_0/probe" in state else "mean"
    positions = shape("img/pos_embedding")[1]
    if math.isqrt(positions) ** 2 != positions:
        raise ConversionError(
            f"{root}img/pos_embedding: {positions} positions are no square; only square "
            f"pictures can be taken over"
        )
    side = math.isqrt(positions) * patch
    length = shape("txt/pos_embedding")[1]
    vocabulary, _ = shape("txt/Embed_0/embedding")
    heads = tuple(f"{root}{tower}/head/kernel" in state for tower in ("img", "txt"))
    projections = {(True, True): "both", (False, True): "text", (False, False): "none"}.get(heads)
    if projections is None:
        raise ConversionError(f"{root}txt/head/kernel: is missing, while the image has a head")
    embed = shape("txt/head/kernel")[1] if heads[1] else image.width
    biased = f"{root}b" in state
    shared = dict(activation="gelu_tanh", eps=1e-6)
    model = model_of(dict(
        name="dual_encoder", image=dict(vit_node(image, patch, side), pool=pool, **shared),
        text=dict(text_node(text, length), mask_padding=False, pool="map" if f"{root}txt/MAPHead_0/probe" in state else "last", **shared),
        projections=projections, projection_bias=True, embed_dim=embed, init_scale=10.0, init_bias=-10.0 if biased else None, max_scale=None,
    ))  # fmt: skip
    return (
        model,
        InputSpec(side, length, vocabulary, 1 if vocabulary == C4_EN else 0, None),
        (image_scanned, text_scanned),
    )


def _sizes(state: Mapping[str, np.ndarray], stack: str) -> tuple[Sizes, bool]:
    query = "MultiHeadDotProductAttention_0/query/kernel"
    up = "MlpBlock_0/Dense_0/kernel"
    scanned = f"{stack}/encoderblock/{query}" in state
    block = f"{stack}/encoderblock" if scanned else f"{stack}/encoderblock_0"
    if f"{block}/{query}" not in state or f"{block}/{up}" not in state:
        raise ConversionError(f"{block}/{query}: is missing; not a two-tower model of big_vision")
    *layers, width, heads, _ = state[f"{block}/{query}"].shape
    depth = (
        layers[0]
        if scanned
        else sum(
            name.startswith(f"{stack}/encoderblock_") and name.endswith(query) for name in state
        )
    )
    return Sizes(width, depth, heads, state[f"{block}/{up}"].shape[-1]), scanned


def save(bundle: Bundle, path: pathlib.Path) -> tuple[str, ...]:
    """Writes an npz file; returns what is to be told.

    Raises:
      ConversionError: a model without a counterpart.
    """
    model = bundle.model
    if model.registered_name != "dual_encoder" or (
        model.image.registered_name,
        model.text.registered_name,
    ) != ("vit", "text_transformer"):
        raise ConversionError(
            f"model: {model.registered_name!r} has no counterpart in big_vision (dual_encoder "
            f"of vit and text_transformer has)"
        )
    must_be("big_vision's SigLIP", model, {
        "image.pool": ("map", "mean"), "image.positions": ("learned",), "image.pre_norm": (False,), "image.post_norm": (True,),
        "image.patch_bias": (True,), "image.activation": ("gelu_tanh",), "image.eps": (1e-6,), "image.qk_norm": (False,),
        "text.pool": ("last", "map"), "text.causal": (False,), "text.mask_padding": (False,), "text.activation": ("gelu_tanh",),
        "text.eps": (1e-6,), "text.qk_norm": (False,), "projection_bias": (True,),
    })  # fmt: skip
    origin = bundle.origin.get("big_vision", {"root": ROOT, "scanned": [False, False]})
    state = write_arrays(
        dict(table(model, origin["root"], tuple(origin["scanned"]))), bundle.arrays
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, **state)
    tokenizer = bundle.tokenizer
    if tokenizer is not None and tokenizer.kind in ("unigram", "sentencepiece"):
        path.with_suffix(".model").write_bytes(tokenizer.content)
        return (
            f"the tokenizer is {path.with_suffix('.model').name}, padded with {tokenizer.pad_id}",
        )
    return ("an npz file has no place for the tokenizer",)


def _tokenizer(folder: pathlib.Path | None, inputs: InputSpec) -> Tokenizer:
    if folder is None:
        raise ConversionError(
            "an npz file has no tokenizer; give --tokenizer=FOLDER with its SentencePiece "
            "model, or --tokenizer=none"
        )
    found = read_tokenizer(folder, inputs)
    if found.kind != "sentencepiece":
        return found
    pad = 1 if found.vocab_size == C4_EN else found.pad_id
    return Tokenizer(
        found.kind,
        found.content,
        pad_id=pad,
        eos_id=found.eos_id,
        vocab_size=inputs.vocab_size,
        clean=found.clean,
    )


def table(model: DualEncoderConfig, root: str, scanned: tuple[bool, bool]) -> Entries:
    """`scanned`: whether the layers of the image and of the text tower are stacked."""
    image = f"{root}img"
    text = f"{root}txt"
    yield "image/encoder/patches/kernel", Source(f"{image}/embedding/kernel")
    yield "image/encoder/patches/bias", Source(f"{image}/embedding/bias")
    yield "image/encoder/positions", Source(f"{image}/pos_embedding", LEADING)
    yield from _layers("image/encoder", f"{image}/Transformer", model.image.sizes.depth, scanned[0])
    if model.image.pool == "map":
        yield from _pooler("image/encoder/pooler", f"{image}/MAPHead_0")
    if model.projections == "both":
        yield from _dense("image/projection", f"{image}/head")
    yield "text/encoder/words/embedding", Source(f"{text}/Embed_0/embedding")
    yield "text/encoder/positions", Source(f"{text}/pos_embedding", LEADING)
    yield from _layers("text/encoder", f"{text}/Encoder_0", model.text.sizes.depth, scanned[1])
    if model.text.pool == "map":
        yield from _pooler("text/encoder/pooler", f"{text}/MAPHead_0")
    if model.projections != "none":
        yield from _dense("text/projection", f"{text}/head")
    yield "log_scale", Source(f"{root}t", ONE)
    if model.init_bias is not None:
        yield "logit_bias", Source(f"{root}b", ONE)


def _layers(ours: str, theirs: str, depth: int, scanned: bool) -> Entries:
    block = f"{theirs}/encoderblock" if scanned else f"{theirs}/encoderblock_{{i}}"
    n = 0 if scanned else depth
    pairs = [("attention_norm", "LayerNorm_0"), ("mlp_norm", "LayerNorm_1")]
    for mine, name in pairs:
        yield from _norm(f"{ours}/transformer/blocks/{mine}", f"{block}/{name}", n)
    yield from _attention_mlp(f"{ours}/transformer/blocks", block, n)
    yield from _norm(f"{ours}/norm", f"{theirs}/encoder_norm")


def _pooler(ours: str, theirs: str) -> Entries:
    yield f"{ours}/query", Source(f"{theirs}/probe", LEADING)
    yield from _norm(f"{ours}/norm", f"{theirs}/LayerNorm_0")
    yield from _attention_mlp(ours, theirs)


def _attention_mlp(ours: str, theirs: str, layers: int = 0) -> Entries:
    for part in ("query", "key", "value", "out"):
        yield from _dense(
            f"{ours}/attention/{part}", f"{theirs}/MultiHeadDotProductAttention_0/{part}", layers
        )
    yield from _dense(f"{ours}/mlp/up", f"{theirs}/MlpBlock_0/Dense_0", layers)
    yield from _dense(f"{ours}/mlp/down", f"{theirs}/MlpBlock_0/Dense_1", layers)


def _dense(ours: str, theirs: str, layers: int = 0) -> Entries:
    for leaf in ("kernel", "bias"):
        yield f"{ours}/{leaf}", Source(f"{theirs}/{leaf}", layers=layers)


def _norm(ours: str, theirs: str, layers: int = 0) -> Entries:
    for leaf in ("scale", "bias"):
        yield f"{ours}/{leaf}", Source(f"{theirs}/{leaf}", layers=layers)
