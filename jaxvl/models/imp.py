"""IMP's configuration: sizes, inputs, experts and what a task may ask. The model: `imp_encoder`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.aliases import Node
from jaxvl.config import Count, Depth, Heads, Hidden, Pixels, Range, Scale, Width, check, nearest
from jaxvl.data.audio import Spectrogram
from jaxvl.models import MODELS
from jaxvl.models.base import (
    Capabilities,
    InputSpec,
    ModelConfig,
    check_rates,
    sizes_of,
)
from jaxvl.models.imp_encoder import INPUTS, MODALITIES, Imp
from jaxvl.nn.moe import MoeConfig
from jaxvl.nn.transformer import Remat, Sizes, StackOptions

if TYPE_CHECKING:
    from jaxvl.data.config import DataConfig

# Width, layers, heads, hidden of the released models; a sparse one has the same with `moe`.
SIZES: Mapping[str, Sizes] = {
    "small": Sizes(384, 12, 6, 1536),
    "base": Sizes(768, 12, 12, 3072),
    "medium": Sizes(1024, 12, 16, 4096),
    "large": Sizes(1024, 24, 16, 4096),
    "xlarge": Sizes(1536, 24, 24, 4096),
    "xxlarge": Sizes(1536, 32, 24, 4096),
    "huge": Sizes(1536, 32, 24, 8192),
    "xhuge": Sizes(2048, 32, 32, 8192),
    "giant": Sizes(3072, 32, 48, 10240),
}


@MODELS.register("imp")
@dataclasses.dataclass(frozen=True)
class ImpConfig(ModelConfig):
    """IMP.

    Attributes:
      variant: size: small … giant. width, depth, heads, hidden: instead of the variant's.
      moe: mixtures of experts of some layers, or None (dense). IMP: `dict(last=6, experts=16)`,
        with `qk_norm`.
      qk_norm: layer norm of queries and keys; None: with `moe`.
      patch, patch_frames: sides of a patch of video in pixels and frames.
      most_frames, most_pixels: largest video.
      spectrogram_patch: sides of a patch of a spectrogram. most_steps, most_bins: largest
        spectrogram.
      log_mel: a batch's waveforms are heard as this spectrogram; None: as samples.
      waveform_patch: samples of a token. most_samples: longest waveform.
      most_words: longest text.
      inputs: what the model takes, of image, video, spectrogram, waveform and text; it has
        parameters for no other. Each modality of a pair needs one.
      pairs: modalities that are compared, as in `vision-text`; each has two projections and a
        temperature of its own.
      embed_dim, projection_hidden: width of the embedding space, and of the one hidden layer of a
        projection.
      classes: name -> number of classes: linear heads.
      init_temperature: of the cosine, of every pair; None: 0.2, or 1 with `moe`, whose start it
        eases.
      max_scale: largest exp(log_scale), or None.
      dropout, drop_path, scan, remat: see `nn.transformer.StackOptions`.
    """

    variant: str = "base"
    width: Width | None = None
    depth: Depth | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    moe: MoeConfig | None = None
    qk_norm: bool | None = None
    patch: Annotated[int, Range(1, 1_024)] = 16
    patch_frames: Annotated[int, Range(1, 1_024)] = 4
    most_frames: Annotated[int, Range(1, 65_536)] = 64
    most_pixels: Pixels = 512
    spectrogram_patch: Annotated[int, Range(1, 1_024)] = 16
    most_steps: Count = 1024
    most_bins: Annotated[int, Range(1, 65_536)] = 128
    log_mel: Spectrogram | None = None
    waveform_patch: Annotated[int, Range(1, 65_536)] = 256
    most_samples: Annotated[int, Range(1, 2**30)] = 2**18
    most_words: Count = 4096
    inputs: tuple[str, ...] = tuple(INPUTS)
    pairs: tuple[str, ...] = ("vision-text",)
    embed_dim: Width = 1024
    projection_hidden: Hidden = 1024
    classes: dict[str, Annotated[int, Range(2, 16_777_216)]] = dataclasses.field(
        default_factory=dict
    )
    init_temperature: Scale | None = None
    max_scale: Scale | None = 100.0
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = True
    remat: Remat = "none"

    modalities: ClassVar[tuple[str, ...]] = MODALITIES
    training_fields: ClassVar[frozenset[str]] = frozenset({"max_scale"})

    def __post_init__(self):
        check_rates(self, "dropout", "drop_path")
        for name in (
            "patch",
            "patch_frames",
            "most_frames",
            "most_pixels",
            "spectrogram_patch",
            "most_steps",
            "most_bins",
            "waveform_patch",
            "most_samples",
            "most_words",
            "embed_dim",
            "projection_hidden",
        ):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        for name in self.inputs:
            check(name in INPUTS, "inputs", f"{name!r} is not one of {', '.join(INPUTS)}")
        for pair in self.pairs:
            sides = pair.split("-")
            known = len(sides) == 2 and sides[0] != sides[1] and set(sides) <= set(MODALITIES)
            check(
                known,
                "pairs",
                f"{pair!r} must be two of {', '.join(MODALITIES)}, as in 'vision-text'",
            )
            for side in sides:
                may = [name for name, kind in INPUTS.items() if kind == side]
                check(
                    bool({*may} & {*self.inputs}),
                    "pairs",
                    f"{pair!r} needs {' or '.join(may)} among the inputs "
                    f"({', '.join(self.inputs)})",
                )
        check(
            len({frozenset(p.split("-")) for p in self.pairs}) == len(self.pairs),
            "pairs",
            f"{list(self.pairs)!r} names a pair twice",
        )
        for name, n in self.classes.items():
            check(n >= 2, f"classes.{name}", f"{n!r} must be >= 2 classes")
        check(
            self.log_mel is None or "spectrogram" in self.inputs,
            "log_mel",
            "needs 'spectrogram' among the inputs, which waveforms become",
        )
        check(
            self.init_temperature is None or self.init_temperature > 0,
            "init_temperature",
            f"{self.init_temperature!r} must be > 0",
        )
        check(
            self.max_scale is None or self.max_scale > 0,
            "max_scale",
            f"{self.max_scale!r} must be > 0, or None",
        )
        moe = self.moe
        check(
            moe is None or moe.modalities in ((), MODALITIES),
            "moe.modalities",
            f"must be () or {MODALITIES}, which are what this model has",
        )
        if moe is not None:
            moe.layers(self.sizes.depth)

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self, self.variant, SIZES)

    @property
    def temperature(self) -> float:
        return self.init_temperature or (0.2 if self.moe is None else 1.0)

    def options(self) -> StackOptions:
        moe = self.moe and dataclasses.replace(self.moe, modalities=MODALITIES)
        return StackOptions(
            activation="gelu_tanh",
            bias=False,
            qk_norm=self.moe is not None if self.qk_norm is None else self.qk_norm,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            drop_path=self.drop_path,
            scan=self.scan,
            remat=self.remat,
            moe=moe,
        )

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        return Capabilities(multi_instance=True, reports_missing=True, classes=self.classes)

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where patches do not tile the image, or the model has not the
        positions."""
        side = inputs.image_size
        check(
            side % self.patch == 0, "patch", f"{self.patch} pixels must divide the image of {side}"
        )
        check(
            side <= self.most_pixels,
            "most_pixels",
            f"{self.most_pixels} pixels are fewer than the {side} of the images",
        )
        check(
            inputs.text_length <= self.most_words,
            "most_words",
            f"{self.most_words} are fewer than the texts' {inputs.text_length} tokens",
        )

    def check_task(self, data: DataConfig, encode: Node) -> None:
        """Raises ConfigError where a task's `data` is not what the model takes, or its `encode`
        names what the data has not."""
        heard = "waveform" if self.log_mel is None else "spectrogram"
        given = [heard if name == "waveform" else name for name in data.inputs.values()]
        kinds = {INPUTS[name] for name in given}
        for name in given:
            check(
                name in self.inputs,
                "data.fields",
                f"{name!r} is not among the inputs of the model ({', '.join(self.inputs)})",
            )
        check(len(kinds) == len(given), "data.fields", f"{given!r} must be one of a modality")
        if "video" in given:
            frames = data.entries["video"].shape[0]
            fits = frames % self.patch_frames == 0 and frames <= self.most_frames
            problem = (
                f"{frames!r} must be a multiple of {self.patch_frames}, of at most "
                f"{self.most_frames}"
            )
            check(fits, "data.fields.video.frames", problem)
        patched = [name for name in given if name != "text"]
        for name, rate in (encode.get("drop") or {}).items():
            known = (
                f"has no patches to drop in this task (those that have: "
                f"{', '.join(patched) or 'none'})"
            )
            check(name in patched, f"encode.drop.{name}", known)
            check(
                0 <= rate < 1,
                f"encode.drop.{name}",
                f"{rate!r} is a share of the tokens; must be in [0, 1)",
            )
        for head, kind in (encode.get("classes") or {}).items():
            key = f"encode.classes.{head}"
            check(
                head in self.classes,
                key,
                f"is no head of the model{nearest(head, list(self.classes))} "
                f"({', '.join(self.classes) or 'none'})",
            )
            check(
                kind in kinds,
                key,
                f"{kind!r} is no modality of this task ({', '.join(sorted(kinds))})",
            )
        names = None if self.moe is None else self.moe.skills
        if names is not None:
            skills = encode.get("skills") or tuple(kinds)
            for skill in skills:
                check(
                    skill in names,
                    "encode.skills",
                    f"{skill!r} is no skill of the model ({', '.join(names)})",
                )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Imp:
        return Imp(self, inputs, rngs=rngs, dtype=dtype)
