"""Vision transformer (Dosovitskiy et al. 2021), CLIP- and SigLIP-shaped included."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, Epsilon, Heads, Hidden, Width, check
from jaxvl.models import IMAGE_ENCODERS
from jaxvl.models.base import (
    SIZES,
    Encoded,
    EncoderConfig,
    InputSpec,
    check_moe,
    check_rates,
    sizes_of,
)
from jaxvl.nn import poolers
from jaxvl.nn.activations import Activation
from jaxvl.nn.attend import Implementation
from jaxvl.nn.embeddings import PatchEmbedding, resample, sincos_2d
from jaxvl.nn.linear import normal
from jaxvl.nn.moe import MoeConfig
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.patches import Patches, drop_tokens
from jaxvl.nn.quantized import Quantize, check_quantize
from jaxvl.nn.random import dropout, need_key
from jaxvl.nn.transformer import Remat, Sizes, StackOptions, Transformer


@IMAGE_ENCODERS.register("vit")
@dataclasses.dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """Vision transformer as an image encoder.

    Attributes:
      variant: size and patch side, as in `B/16`; sizes: Ti, S, M, B, L, So400m, H, g, G.
      width, depth, heads, hidden: instead of the variant's.
      pool: `cls` (a class token is prepended), `mean`, `map` (attention with a learned query), or
        `cls_mean`: the mean of the patches, a class token being prepended and left out of it, and
        the layer norm after it (CLIPA, Li et al. 2023).
      positions: `learned`, or fixed `sincos`. In images of another size than the model is built for
        a patch has the position of its place in the image: learned ones are resampled bilinearly
        (Dosovitskiy et al. 2021, section 3.2), sincos ones are computed there (not from the paper).
        So training may begin with small images (CLIPA, Li et al. 2023, arXiv 2305.07017).
      patch_bias: bias of the patch embedding (CLIP has none).
      pre_norm: layer norm before the first layer (CLIP).
      uneven: let the patch not divide the image; pixels right and below of the last whole patch are
        not seen (SigLIP So400m/14 at 384).
      post_norm: layer norm after the last one; without it, whoever reads the tokens normalises them
        (open_clip's CoCa).
      activation, eps, qk_norm, drop_path, scan, remat, attention, quantize: see
        `nn.transformer.StackOptions`.
      dropout: on the embeddings and the output of each branch.
      moe: mixtures of experts in place of some MLPs, see `nn.moe.MoeConfig`; their losses are for
        the objective `routing`.
    """

    variant: str = "B/16"
    width: Width | None = None
    depth: Depth | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    pool: Literal["cls", "mean", "map", "cls_mean"] = "map"
    positions: Literal["learned", "sincos"] = "learned"
    patch_bias: bool = True
    pre_norm: bool = False
    uneven: bool = False
    post_norm: bool = True
    activation: Activation = "gelu_tanh"
    eps: Epsilon = 1e-6
    qk_norm: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = True
    remat: Remat = "none"
    attention: Implementation = "auto"
    quantize: Quantize | None = None
    moe: MoeConfig | None = None

    def __post_init__(self):
        check_quantize(self.quantize)
        check_rates(self, "dropout", "drop_path")
        check(
            self.patch >= 1,
            "variant",
            f"{self.variant!r} must be a size and a patch side, as in 'B/16'",
        )
        width = self.sizes.width
        check_moe(self)
        check(
            self.positions != "sincos" or width % 4 == 0,
            "width",
            f"{width} must be a multiple of 4 for sincos positions",
        )

    @property
    def patch(self) -> int:
        side = self.variant.rpartition("/")[2]
        return int(side) if side.isdecimal() and len(side) <= 4 else 0

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self, self.variant.rpartition("/")[0], SIZES)

    @property
    def class_token(self) -> bool:
        return self.pool in ("cls", "cls_mean")

    @property
    def routed(self) -> bool:
        return self.moe is not None

    @property
    def drops_tokens(self) -> bool:
        return True

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        return self.sizes.width

    def options(self) -> StackOptions:
        return StackOptions(
            activation=self.activation,
            eps=self.eps,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            drop_path=self.drop_path,
            scan=self.scan,
            remat=self.remat,
            attention=self.attention,
            quantize=self.quantize,
            moe=self.moe,
        )

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where patches do not tile the image."""
        side = inputs.image_size
        patch = self.patch
        check(
            patch <= side,
            "variant",
            f"{self.variant!r}: the patch of {patch} pixels is larger than the image of {side}",
        )
        check(
            self.uneven or side % patch == 0,
            "variant",
            f"{self.variant!r}: the patch of {patch} pixels must divide the image of {side}",
        )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> ViT:
        return ViT(self, inputs, rngs=rngs, dtype=dtype)


class ViT(nnx.Module):
    """[B, S, S, C] -> `Encoded` with pooled [B, D] and tokens [B, P (+ 1), D].

    Args:
      config: see `ViTConfig`. inputs: fixes the rows of the position table.
    """

    def __init__(
        self,
        config: ViTConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        sizes = config.sizes
        grid = inputs.image_size // config.patch
        has_class = config.class_token
        width = sizes.width
        tokens = grid * grid + has_class
        self.patches = PatchEmbedding(
            config.patch, inputs.channels, width, rngs=rngs, bias=config.patch_bias, dtype=dtype
        )

        def table(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
            # Standard deviation 1 / sqrt(D), as in big_vision and CLIP.
            return nnx.Param(normal(width**-0.5)(rngs.params(), shape, jnp.float32), axes=axes)

        self.class_token = table((width,), ("norm",)) if has_class else None
        self.positions = (
            table((tokens, width), ("length", "embed")) if config.positions == "learned" else None
        )
        self.pre_norm = LayerNorm(width, eps=config.eps, dtype=dtype) if config.pre_norm else None
        self.transformer = Transformer(sizes, config.options(), rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(width, eps=config.eps, dtype=dtype) if config.post_norm else None
        pooler = dict(activation=config.activation, eps=config.eps, rngs=rngs, dtype=dtype)
        self.pooler = (
            poolers.MapPooler(width, sizes.heads, sizes.hidden, **pooler)
            if config.pool == "map"
            else None
        )
        self.grid = grid
        self.width = width
        self.pool = config.pool
        self.dropout = config.dropout
        self.dtype = dtype

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        drop: float = 0.0,
        row_keys: jax.Array | None = None,
    ) -> Encoded:
        """Encodes images.

        Args:
          image: [B, S, S, C] normalised.
          train, key: as for every encoder.
          drop: share of the patches that is left out in training, before they are embedded (FLIP,
            Li et al. 2022, arXiv 2212.00794: 0.5 or 0.75). See `nn.patches.drop_tokens`. The class
            token stays.
          row_keys: [B], from which the rows draw what they keep; None: from `key`.

        Raises:
          ValueError: in training without a key, if anything drops.
        """
        patches = self.patches.cut(image)
        positions = self._positions(round(patches.shape[1] ** 0.5)).astype(self.dtype)
        first = positions[: -patches.shape[1]]  # of the class token, where positions are learned
        positions = positions[-patches.shape[1] :]
        if drop and train:
            patches, positions = self._dropped(patches, positions, drop, key, row_keys)
        x = self.patches.embed(patches) + positions
        if self.class_token is not None:
            token = self.class_token[...].astype(self.dtype)
            token = token + first[0] if len(first) else token
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(x, self.dropout, embed_key, train=train)
        x = x if self.pre_norm is None else self.pre_norm(x)
        routed = self.transformer.routed(x, train=train, key=stack_key)
        x = routed.y
        routing = routed.by_row() or None
        norm = (lambda x: x) if self.norm is None else self.norm
        if self.pool == "cls_mean":
            return Encoded(norm(poolers.mean(x[:, 1:])), norm(x), routing=routing)
        x = norm(x)
        pooled = {"cls": poolers.first, "mean": poolers.mean, "map": self.pooler}[self.pool](x)
        return Encoded(pooled, x, routing=routing)

    def _dropped(
        self,
        patches: jax.Array,
        positions: jax.Array,
        drop: float,
        key: jax.Array | None,
        row_keys: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """patches [B, P, F], positions [P, D] -> those of the patches that stay, [B, K, F] and
        [B, K, D]."""
        b, p, _ = patches.shape
        if row_keys is None:
            key = need_key(key, "token dropping")
            row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
        places = jnp.broadcast_to(jnp.arange(p)[:, None], (b, p, 1))
        kept = drop_tokens(Patches(patches, places), drop, row_keys)
        return kept.values, positions[kept.places[..., 0]]

    def _positions(self, grid: int) -> jax.Array:
        """Float32 [P (+ 1), D], of an image of `grid` x `grid` patches."""
        if self.positions is None:
            return jnp.asarray(sincos_2d(grid, self.width, of=self.grid))
        table = self.positions[...]
        return resample(table, len(table) - self.grid**2 + grid**2)
