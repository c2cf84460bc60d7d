"""Dual encoder of a ViT and a text transformer: CLIP- (Radford et al. 2021) and SigLIP-shaped (Zhai
et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Range, Scale, Width, check
from jaxvl.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS
from jaxvl.models.base import EncoderConfig, InputSpec
from jaxvl.models.text import TextTransformerConfig
from jaxvl.models.two_tower import Logits, Tower, TwoTower, TwoTowerConfig
from jaxvl.models.vit import ViTConfig


@MODELS.register("dual_encoder")
@dataclasses.dataclass(frozen=True)
class DualEncoderConfig(TwoTowerConfig):
    """Dual encoder. `models.presets` has the exact shapes of CLIP and SigLIP.

    Attributes:
      image, text: encoders by name, with their options.
      projections: which pooled outputs are mapped linearly to `embed_dim`: `both` (CLIP), `text`
        (SigLIP; the image's pooled output is used as it is), or `none`.
      projection_bias: bias of these maps.
      embed_dim: width of the embedding space; None: the image encoder's width.
      init_scale: initial factor of the cosine; it is learned, and stored as its logarithm.
      min_scale, max_scale: smallest and largest factor, or None for no limit (ALBEF clamps the
        temperature to [0.001, 0.5]: 2 and 1000).
      init_bias: initial bias of the logits (SigLIP: -10), or None for a model without.
      views, heads: see `TwoTowerConfig`.

    Locked-image tuning (LiT, Zhai et al. 2022) is `optim.freeze=r"^image/encoder/"`.
    """

    image: Annotated[EncoderConfig, IMAGE_ENCODERS] = ViTConfig()
    text: Annotated[EncoderConfig, TEXT_ENCODERS] = TextTransformerConfig()
    projections: Literal["both", "text", "none"] = "both"
    projection_bias: bool = False
    embed_dim: Width | None = None
    init_scale: Scale = 1 / 0.07
    min_scale: Scale | None = None
    max_scale: Scale | None = 100.0
    init_bias: Annotated[float, Range(-1e6, 1e6)] | None = None

    training_fields: ClassVar[frozenset[str]] = frozenset({"min_scale", "max_scale", "init_scale"})

    def __post_init__(self):
        super().__post_init__()
        check(
            self.embed_dim is None or self.embed_dim >= 1,
            "embed_dim",
            f"{self.embed_dim!r} must be >= 1, or None for the image encoder's width",
        )
        check(self.init_scale > 0, "init_scale", f"{self.init_scale!r} must be > 0")
        check(
            self.max_scale is None or self.max_scale >= self.init_scale,
            "max_scale",
            f"{self.max_scale!r} is below init_scale = {self.init_scale:g}",
        )
        check(
            self.min_scale is None or 0 < self.min_scale <= self.init_scale,
            "min_scale",
            f"{self.min_scale!r} must be > 0 and at most init_scale = {self.init_scale:g}",
        )
        for side, projected in (
            ("image", self.projections == "both"),
            ("text", self.projections != "none"),
        ):
            width = self.encoders[side].features
            check(
                projected or width == self._width,
                "projections",
                f"{self.projections!r} leaves the {side} encoder's width of {width}, but the "
                f"embedding space has {self._width}",
            )

    @property
    def _width(self) -> int:
        return self.embed_dim or self.image.features

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> TwoTower:
        def tower(config: EncoderConfig, project: bool) -> Tower:
            encoder = config.build(inputs, rngs, dtype)
            return Tower(
                encoder,
                self._width,
                project=project,
                bias=self.projection_bias,
                rngs=rngs,
                dtype=dtype,
            )

        image = tower(self.image, self.projections == "both")
        text = tower(self.text, self.projections != "none")
        least = None if self.min_scale is None else math.log(self.min_scale)
        most = None if self.max_scale is None else math.log(self.max_scale)
        return TwoTower(
            image,
            text,
            logits=Logits(math.log(self.init_scale), least, most, self.init_bias),
            views=self.views,
            heads=self.heads,
            rngs=rngs,
            dtype=dtype,
        )
