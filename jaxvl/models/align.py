"""ALIGN (Jia et al. 2021): EfficientNet and BERT from scratch, trained with a normalised
softmax."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Scale, Width, check
from jaxvl.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS
from jaxvl.models.base import EncoderConfig, InputSpec
from jaxvl.models.bert import BertConfig
from jaxvl.models.efficientnet import EfficientNetConfig
from jaxvl.models.two_tower import Logits, Tower, TwoTower, TwoTowerConfig


@MODELS.register("align")
@dataclasses.dataclass(frozen=True)
class AlignConfig(TwoTowerConfig):
    """ALIGN. The text's pooled state is mapped linearly to the width of the pooled image, both are
    scaled to length 1.

    Attributes:
      image, text: encoders by name, with their options.
      embed_dim: width of the embedding space. None: that of the image encoder, whose output is then
        used as it is (the paper's form); another number adds a linear map on the image side.
      init_temperature: initial temperature; it is learned, and stored as `log_scale =
        -log(temperature)`.
      max_scale: largest 1 / temperature, or None for no limit (the paper states none).
      views, heads: see `TwoTowerConfig`.
    """

    image: Annotated[EncoderConfig, IMAGE_ENCODERS] = EfficientNetConfig("b7")
    text: Annotated[EncoderConfig, TEXT_ENCODERS] = BertConfig("base")
    embed_dim: Width | None = None
    init_temperature: Scale = 1.0
    max_scale: Scale | None = 100.0

    training_fields: ClassVar[frozenset[str]] = frozenset({"max_scale"})

    def __post_init__(self):
        super().__post_init__()
        check(
            self.embed_dim is None or self.embed_dim >= 1,
            "embed_dim",
            f"{self.embed_dim!r} must be >= 1, or None for the image encoder's width",
        )
        check(
            self.init_temperature > 0, "init_temperature", f"{self.init_temperature!r} must be > 0"
        )
        most = self.max_scale
        check(
            most is None or most * self.init_temperature >= 1,
            "max_scale",
            f"{most!r} is below 1 / init_temperature = {1 / self.init_temperature:g}",
        )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> TwoTower:
        width = self.embed_dim or self.image.features

        def tower(config: EncoderConfig, project: bool) -> Tower:
            encoder = config.build(inputs, rngs, dtype)
            return Tower(
                encoder,
                width,
                project=project,
                bias=True,
                rngs=rngs,
                dtype=dtype,
            )

        image = tower(self.image, width != self.image.features)
        text = tower(self.text, True)
        most = None if self.max_scale is None else math.log(self.max_scale)
        return TwoTower(
            image,
            text,
            logits=Logits(-math.log(self.init_temperature), most=most),
            views=self.views,
            heads=self.heads,
            rngs=rngs,
            dtype=dtype,
        )
