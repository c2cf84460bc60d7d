"""Sizes and options that CoCa and its variants share; the model over them is in `captioner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from jaxvl.aliases import Node
from jaxvl.config import ConfigError, Depth, Heads, Hidden, Range, Scale, Width, check
from jaxvl.models import IMAGE_ENCODERS
from jaxvl.models.base import (
    Capabilities,
    EncoderConfig,
    InputSpec,
    ModelConfig,
    check_drop,
    check_rates,
)
from jaxvl.models.vit import ViTConfig
from jaxvl.nn.activations import Activation
from jaxvl.nn.transformer import Remat, Sizes, StackOptions

if TYPE_CHECKING:
    from jaxvl.data.config import DataConfig

# Width, heads, hidden, layers of either half of the decoder (Yu et al. 2022, table 1).
VARIANTS: Mapping[str, tuple[int, int, int, int]] = {
    "base": (768, 12, 3072, 12),
    "large": (1024, 16, 4096, 12),
    "2b": (1408, 16, 5632, 18),
}


@dataclasses.dataclass(frozen=True)
class CaptionerConfig(ModelConfig):
    """Options of every captioner.

    Attributes:
      image: image encoder by name; its tokens are read, not its pooled output (the paper: B/18 at
        288 pixels).
      variant: size of the text decoder: base, large, 2b.
      width, heads, hidden: of the decoder, instead of the variant's.
      unimodal, multimodal: layers of its two halves, instead of the variant's.
      queries: tokens of the image that the caption is read from.
      pooler_heads: of all poolers; None: as the decoder.
      tied: the vocabulary head shares the word embedding (the published sizes of base and large
        count them apart).
      embed_dim: width of the embedding space; None: the decoder's.
      init_scale, max_scale: of the cosine, as in `dual_encoder`.
      activation, dropout, drop_path, scan, remat: of the decoder, see
        `nn.transformer.StackOptions`.
    """

    image: Annotated[Any, IMAGE_ENCODERS] = ViTConfig(variant="B/16", pool="mean")
    variant: str = "base"
    width: Width | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    unimodal: Depth | None = None
    multimodal: Depth | None = None
    queries: Annotated[int, Range(1, 65_536)] = 256
    pooler_heads: Heads | None = None
    tied: bool = False
    embed_dim: Width | None = None
    init_scale: Scale = 1 / 0.07
    max_scale: Scale | None = 100.0
    activation: Activation = "gelu"
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = True
    remat: Remat = "none"

    training_fields: ClassVar[frozenset[str]] = frozenset({"max_scale", "init_scale"})

    def __post_init__(self):
        check(
            self.variant in VARIANTS,
            "variant",
            f"{self.variant!r} is not a known variant (known: {', '.join(VARIANTS)})",
        )
        check_rates(self, "dropout", "drop_path")
        check(
            not self.image.routed,
            "image.moe",
            f"the losses of its layers would be lost: {self.registered_name!r} does not report "
            f"them",
        )
        for half in (self.sizes("unimodal"), self.sizes("multimodal")):
            check(half.depth >= 1, "unimodal", "both halves of the decoder need at least one layer")
            check(
                half.width % half.heads == 0,
                "heads",
                f"{half.heads} must divide the width of {half.width}",
            )
        check(self.queries >= 1, "queries", f"{self.queries!r} must be >= 1")
        heads = self.pooler_heads or self.sizes("unimodal").heads
        check(
            self.sizes("unimodal").width % heads == 0,
            "pooler_heads",
            f"{heads} must divide the width of {self.sizes('unimodal').width}",
        )
        check(self.init_scale > 0, "init_scale", f"{self.init_scale!r} must be > 0")

    def sizes(self, half: Literal["unimodal", "multimodal"]) -> Sizes:
        width, heads, hidden, depth = VARIANTS[self.variant]
        given = getattr(self, half)
        ratio = hidden / width
        width = self.width or width
        return Sizes(
            width,
            depth if given is None else given,
            self.heads or heads,
            self.hidden or round(ratio * width),
        )

    def options(self) -> StackOptions:
        return StackOptions(
            activation=self.activation,
            eps=1e-5,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            drop_path=self.drop_path,
            scan=self.scan,
            remat=self.remat,
        )

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"image": self.image}

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        return Capabilities(generates=True)

    def check_task(self, data: DataConfig, encode: Node) -> None:
        """Raises ConfigError where a task drops tokens of an encoder that cannot."""
        check_drop(encode, self.encoders)

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the image encoder cannot take such images, or no token ends a
        caption."""
        name = self.registered_name
        try:
            self.image.check_inputs(inputs)
        except ConfigError as error:
            raise error.under("image") from None
        check(
            inputs.eos_id is not None,
            "name",
            f"{name!r} needs a tokenizer with an EOS token, which ends a caption",
        )
        check(
            inputs.eos_id != inputs.pad_id,
            "name",
            f"{name!r} needs a tokenizer that pads with another token than its EOS "
            f"({inputs.eos_id})",
        )
