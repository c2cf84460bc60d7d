"""EfficientNet (Tan & Le 2019), EfficientNet-L2 (Xie et al. 2020), EfficientNetV2 (Tan & Le 2021),
and small variants.

A network is a stem, stages of blocks, optionally a 1 x 1 head convolution, and a global pool.
Stages are written in the notation of `efficientnet_variants`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Epsilon, Range, Width, check, nearest
from jaxvl.models import IMAGE_ENCODERS
from jaxvl.models.base import Encoded, EncoderConfig, InputSpec, check_rates
from jaxvl.models.efficientnet_variants import VARIANTS, Stage, parse_stage, round_channels
from jaxvl.nn.activations import ACTIVATIONS, Activation
from jaxvl.nn.conv import Conv, PadRule, space_to_depth
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import BatchNorm, GroupNorm
from jaxvl.nn.random import drop_path
from jaxvl.nn.repeats import run_repeats
from jaxvl.nn.stack import recomputes
from jaxvl.sharding import constrain

MOST_BLOCKS = 1_024
MOST_CHANNELS = 65_536
Multiplier = Annotated[float, Range(0.0, 64.0, above=True)]


@IMAGE_ENCODERS.register("efficientnet")
@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(EncoderConfig):
    """EfficientNet as an image encoder.

    Attributes:
      variant: `b0` … `b7`, `l2`, `v2_s`, `v2_m`, `v2_l`, or one of the small ones for images of 32
        to 96 pixels.
      width, depth: multipliers of channels and repeats; None: the variant's.
      stages: stages in the module's notation instead of the variant's.
      stem: channels of the stem (before `width`); None: the variant's.
      stem_stride: 2, or 1 for small images.
      stem_patch: the stem sees blocks of this many pixels a side as the channels of one
        (space-to-depth, Ridnik et al. 2021): 4 leaves a quarter of the side. Early convolutions
        over many pixels and few channels are what costs most.
      head: whether a 1 x 1 convolution follows the last stage, as in the classifier. ALIGN pools
        the last stage itself.
      norm: `batch` (statistics of the global batch) or `group` (of 8 channels, row by row).
      norm_momentum, norm_eps: of the norm; momentum is the share of the old statistics that is
        kept.
      activation: after norms.
      drop_connect: drop-path rate that the last block would have; it grows linearly with depth from
        0.
      padding: see `nn.conv.pads`; `bottom_right` is transformers' layout.
      symmetric_blocks: numbers of the blocks padded on all sides under `bottom_right`.
      pool: global `mean` or `max`.
      remat: recompute blocks in the backward pass.
      scan: the blocks of a stage behind its first one are one compiled block in a loop: a quarter
        to a tenth of the time to compile. Their parameters are stacked in every step.
    """

    variant: str = "b0"
    width: Multiplier | None = None
    depth: Multiplier | None = None
    stages: tuple[str, ...] | None = None
    stem: Width | None = None
    stem_stride: int = 2
    stem_patch: Annotated[int, Range(1, 1_024)] = 1
    head: bool = False
    norm: Literal["batch", "group"] = "batch"
    norm_momentum: float = 0.99
    norm_eps: Epsilon = 1e-3
    activation: Activation = "swish"
    drop_connect: float = 0.2
    padding: PadRule = "same"
    symmetric_blocks: tuple[int, ...] = ()
    pool: Literal["mean", "max"] = "mean"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        known = list(VARIANTS)
        check(
            self.variant in VARIANTS,
            "variant",
            f"{self.variant!r} is not a known variant{nearest(self.variant, known)} (known: "
            f"{', '.join(known)})",
        )
        check(
            self.width is None or self.width > 0,
            "width",
            f"{self.width!r} multiplies channels; must be > 0",
        )
        check(
            self.depth is None or self.depth > 0,
            "depth",
            f"{self.depth!r} multiplies repeats; must be > 0",
        )
        check(self.stem_stride in (1, 2), "stem_stride", f"{self.stem_stride!r} must be 1 or 2")
        check(self.stem_patch >= 1, "stem_patch", f"{self.stem_patch!r} must be >= 1 pixel")
        check(
            0 <= self.norm_momentum < 1,
            "norm_momentum",
            f"{self.norm_momentum!r} must be in [0, 1)",
        )
        check(
            self.stages is None or len(self.stages) > 0,
            "stages",
            "must name at least one stage, or be None",
        )
        check_rates(self, "drop_connect")
        stem, stages, _ = self.plan()
        blocks = sum(s.repeats for s in stages)
        widest = max(stem, *(s.channels * s.expand for s in stages))
        check(
            blocks <= MOST_BLOCKS,
            "depth",
            f"{self.depth!r} makes {blocks:,} blocks of {self.variant!r}; must be <= "
            f"{MOST_BLOCKS:,}",
        )
        check(
            widest <= MOST_CHANNELS,
            "width",
            f"{self.width!r} makes {widest:,} channels of {self.variant!r}; must be <= "
            f"{MOST_CHANNELS:,}",
        )

    def plan(self) -> tuple[int, tuple[Stage, ...], int]:
        """(stem channels, stages, head channels) after the multipliers."""
        plan = VARIANTS[self.variant]
        width = plan.width if self.width is None else self.width
        depth = plan.depth if self.depth is None else self.depth

        def channels(n: int) -> int:
            return round_channels(n * width)

        stages = tuple(
            dataclasses.replace(
                s, channels=channels(s.channels), repeats=math.ceil(depth * s.repeats)
            )
            for s in map(parse_stage, self.stages or plan.stages)
        )
        return channels(self.stem or plan.stem), stages, channels(plan.head)

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        _, stages, head = self.plan()
        return head if self.head else stages[-1].channels

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the image is smaller than the network's total stride."""
        check(
            inputs.image_size % self.stem_patch == 0,
            "stem_patch",
            f"{self.stem_patch} must divide the image of {inputs.image_size} pixels",
        )
        total = self.stem_patch * self.stem_stride * math.prod(s.stride for s in self.plan()[1])
        halved = self.stem_stride == 2
        more = "a stem_stride of 1 or stages of stride 1 keep more"
        problem = (
            f"the network divides the side by {total}, more than the image of "
            f"{inputs.image_size} pixels has; {more if halved else 'use stages of stride 1'}"
        )
        check(inputs.image_size >= total, "stem_stride", problem)

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> EfficientNet:
        return EfficientNet(self, inputs.channels, rngs=rngs, dtype=dtype)


def _norm(config: EfficientNetConfig, channels: int, dtype: DTypeLike) -> nnx.Module:
    if config.norm == "group":
        return GroupNorm(channels, eps=config.norm_eps, dtype=dtype)
    return BatchNorm(channels, momentum=config.norm_momentum, eps=config.norm_eps, dtype=dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, norm, and activation where one is given.

    Args:
      activation: a name of `nn.activations.ACTIVATIONS`, or None.
      options: of `nn.conv.Conv`.
    """

    def __init__(self, config, inputs, outputs, kernel, *, activation=None, rngs, dtype, **options):
        self.conv = Conv(inputs, outputs, kernel, rngs=rngs, dtype=dtype, **options)
        self.norm = _norm(config, outputs, dtype)
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.norm(self.conv(x), train=train)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


class SqueezeExcite(nnx.Module):
    """Channel gates from the spatial mean (Hu et al. 2018): `x · sigmoid(up(act(down(mean(x)))))`.

    Args:
      channels: of x. squeezed: width between.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Activation,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        # Of both maps the dimension of x is split; few meshes divide the width between.
        self.down = Linear(
            channels, squeezed, axes=("conv_out", "conv_in"), rngs=rngs, init=init, dtype=dtype
        )
        self.up = Linear(
            squeezed, channels, axes=("conv_in", "conv_out"), rngs=rngs, init=init, dtype=dtype
        )
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.up(ACTIVATIONS[self.activation](self.down(x.mean((1, 2)))))
        return x * jax.nn.sigmoid(gate)[:, None, None, :]


class MBConv(nnx.Module):
    """Inverted residual block: expand, filter, squeeze-excite, project; residual where shapes
    allow.

    Args:
      stage: kind and sizes; stride: of this block. rule: padding.
    """

    def __init__(
        self,
        config,
        stage: Stage,
        inputs: int,
        stride: int,
        rule: PadRule,
        *,
        rngs,
        dtype,
    ):
        hidden = inputs * stage.expand
        act = config.activation
        self.stride = stride
        self.residual = stride == 1 and inputs == stage.channels
        filters = dict(stride=stride, rule=rule, rngs=rngs, dtype=dtype)
        expands = stage.expand != 1
        if stage.kind == "fused":
            # A fused block without expansion is one convolution, which then carries the activation
            # (EfficientNetV2).
            hidden = hidden if expands else stage.channels
            self.expand = None
            self.filter = ConvNorm(config, inputs, hidden, stage.kernel, activation=act, **filters)
        else:
            self.expand = (
                ConvNorm(config, inputs, hidden, 1, activation=act, rngs=rngs, dtype=dtype)
                if expands
                else None
            )
            self.filter = ConvNorm(
                config, hidden, hidden, stage.kernel, activation=act, depthwise=True, **filters
            )
        squeezed = max(1, int(inputs * stage.squeeze))
        self.gate = (
            SqueezeExcite(hidden, squeezed, activation=act, rngs=rngs, dtype=dtype)
            if stage.squeeze
            else None
        )
        projects = stage.kind == "mbconv" or expands
        self.project = (
            ConvNorm(config, hidden, stage.channels, 1, rngs=rngs, dtype=dtype)
            if projects
            else None
        )

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None = None,
        drop_rate: float | jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """x [B, S, S, C] -> [B, S', S', C']; `drop_rate`: drop-connect, None: none."""
        y = x if self.expand is None else self.expand(x, train=train)
        y = self.filter(y, train=train)
        y = y if self.gate is None else self.gate(y)
        y = y if self.project is None else self.project(y, train=train)
        if not self.residual:
            return y
        return x + (y if drop_rate is None else drop_path(y, drop_rate, key, train=train))


class EfficientNet(nnx.Module):
    """[B, S, S, C] -> `Encoded` with pooled [B, D].

    Args:
      config: see `EfficientNetConfig`. channels: C.
    """

    def __init__(
        self,
        config: EfficientNetConfig,
        channels: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        stem, stages, head = config.plan()
        act = config.activation
        rule = config.padding
        self.patch = config.stem_patch
        self.stem = ConvNorm(
            config,
            channels * self.patch**2,
            stem,
            3,
            activation=act,
            stride=config.stem_stride,
            rule=rule,
            rngs=rngs,
            dtype=dtype,
        )
        inputs = stem
        blocks = []
        for stage in stages:
            for i in range(stage.repeats):
                number = len(blocks)
                block_rule = (
                    "symmetric"
                    if number in config.symmetric_blocks and rule == "bottom_right"
                    else rule
                )
                blocks.append(
                    MBConv(
                        config,
                        stage,
                        inputs,
                        stage.stride if i == 0 else 1,
                        block_rule,
                        rngs=rngs,
                        dtype=dtype,
                    )
                )
                inputs = stage.channels
        self.blocks = nnx.List(blocks)
        self.head = (
            ConvNorm(config, inputs, head, 1, activation=act, rngs=rngs, dtype=dtype)
            if config.head
            else None
        )
        self.width = config.features
        self.pool = config.pool
        self.drop_connect = config.drop_connect
        self.remat = config.remat
        self.scan = config.scan

    def __call__(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """image [B, S, S, C] normalised. Raises ValueError in training without a key if
        drop_connect > 0."""

        def run(block, x, inputs):
            y = block(x, *inputs, train=train)
            return constrain(y, "batch", None, None, None)

        run = nnx.remat(run) if recomputes(self.remat) else run
        x = self.stem(space_to_depth(image, self.patch), train=train)
        x = constrain(x, "batch", None, None, None)
        drops = train and self.drop_connect > 0
        inputs = []
        for number in range(len(self.blocks)):
            own = None if key is None else jax.random.fold_in(key, number)
            rate = self.drop_connect * number / len(self.blocks) if drops else None
            inputs.append((own, rate))
        if self.scan:
            x = run_repeats(run, self.blocks, x, inputs)
        else:
            for block, own in zip(self.blocks, inputs):
                x = run(block, x, own)
        x = x if self.head is None else self.head(x, train=train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return Encoded(tokens.max(1) if self.pool == "max" else tokens.mean(1), tokens)
