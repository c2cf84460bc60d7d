"""The shapes of EfficientNets: stem, stages and head of every variant, and the stages' notation.

Stages are written as in the papers' code: `mbconv_r2_k3_s2_e6_o24_se0.25` is two inverted residual
blocks of kernel 3, the first with stride 2, expansion 6, 24 output channels and squeeze-excite of a
quarter of the block's input width; `fused_…` expands with one full convolution instead of a 1 x 1
and a depthwise one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from jaxvl.config import ConfigError, check


@dataclasses.dataclass(frozen=True)
class Plan:
    """A variant before its options.

    Attributes:
      width, depth: multipliers of channels and repeats.
      stem, head: channels of the stem and of the head convolution, before `width`.
      stages: see the module's docstring, before `width` and `depth`.
    """

    width: float
    depth: float
    stem: int
    head: int
    stages: tuple[str, ...]


_V1 = (
    "mbconv_r1_k3_s1_e1_o16_se0.25",
    "mbconv_r2_k3_s2_e6_o24_se0.25",
    "mbconv_r2_k5_s2_e6_o40_se0.25",
    "mbconv_r3_k3_s2_e6_o80_se0.25",
    "mbconv_r3_k5_s1_e6_o112_se0.25",
    "mbconv_r4_k5_s2_e6_o192_se0.25",
    "mbconv_r1_k3_s1_e6_o320_se0.25",
)


def _v1(width: float, depth: float) -> Plan:
    return Plan(width, depth, 32, 1280, _V1)


VARIANTS: Mapping[str, Plan] = {
    "b0": _v1(1.0, 1.0),
    "b1": _v1(1.0, 1.1),
    "b2": _v1(1.1, 1.2),
    "b3": _v1(1.2, 1.4),
    "b4": _v1(1.4, 1.8),
    "b5": _v1(1.6, 2.2),
    "b6": _v1(1.8, 2.6),
    "b7": _v1(2.0, 3.1),
    "l2": _v1(4.3, 5.3),
    "v2_s": Plan(
        1.0, 1.0, 24, 1280,
        ("fused_r2_k3_s1_e1_o24", "fused_r4_k3_s2_e4_o48", "fused_r4_k3_s2_e4_o64", "mbconv_r6_k3_s2_e4_o128_se0.25",
         "mbconv_r9_k3_s1_e6_o160_se0.25", "mbconv_r15_k3_s2_e6_o256_se0.25"),
    ),
    "v2_m": Plan(
        1.0, 1.0, 24, 1280,
        ("fused_r3_k3_s1_e1_o24", "fused_r5_k3_s2_e4_o48", "fused_r5_k3_s2_e4_o80", "mbconv_r7_k3_s2_e4_o160_se0.25",
         "mbconv_r14_k3_s1_e6_o176_se0.25", "mbconv_r18_k3_s2_e6_o304_se0.25", "mbconv_r5_k3_s1_e6_o512_se0.25"),
    ),
    "v2_l": Plan(
        1.0, 1.0, 32, 1280,
        ("fused_r4_k3_s1_e1_o32", "fused_r7_k3_s2_e4_o64", "fused_r7_k3_s2_e4_o96", "mbconv_r10_k3_s2_e4_o192_se0.25",
         "mbconv_r19_k3_s1_e6_o224_se0.25", "mbconv_r25_k3_s2_e6_o384_se0.25", "mbconv_r7_k3_s1_e6_o640_se0.25"),
    ),
    # Ours, for pictures of 48 pixels on a CPU with stem_patch=4: full convolutions only, where they
    # run fastest.
    "pico": Plan(1.0, 1.0, 48, 384, (
        "fused_r1_k3_s1_e1_o48_se0.25", "fused_r1_k2_s2_e1_o96", "fused_r2_k3_s1_e1_o96_se0.25",
        "fused_r1_k2_s2_e1_o192", "fused_r3_k3_s1_e1_o192_se0.25",
    )),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, as read from its notation.

    Attributes:
      kind: `mbconv` or `fused`.
      repeats, kernel, stride, expand: as the letters r, k, s, e.
      channels: o. squeeze: se, 0 where there is none.
    """

    kind: Literal["mbconv", "fused"]
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int
    squeeze: float = 0.0


_STAGE = re.compile(
    r"(mbconv|fused)_r(\d{1,5})_k(\d{1,5})_s(\d{1,5})_e(\d{1,5})_o(\d{1,5})(?:_se(0?\.\d+|1))?"
)


def parse_stage(text: str) -> Stage:
    """Reads the notation. Raises ConfigError where it does not fit."""
    match = _STAGE.fullmatch(text)
    if match is None:
        raise ConfigError(
            "stages",
            f"{text!r} must be written like 'mbconv_r2_k3_s2_e6_o24_se0.25' or "
            f"'fused_r2_k3_s1_e4_o32'",
        )
    kind, *numbers, squeeze = match.groups()
    stage = Stage(kind, *map(int, numbers), float(squeeze or 0))
    check(
        min(stage.repeats, stage.kernel, stage.stride, stage.expand, stage.channels) >= 1,
        "stages",
        f"{text!r}: numbers must be >= 1",
    )
    return stage


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, never more than a tenth below `channels` (EfficientNet's
    rounding)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
