"""TPU slices by the name that `jaxvl.plan` gives them: `v5e:16x16`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence

from jaxvl.slices import sides


@dataclasses.dataclass(frozen=True)
class Kind:
    """A generation of TPU.

    Attributes:
      label: of Google Kubernetes Engine.
      prefix: of the names that `gcloud` and `xpk` have for a slice.
      cores: of a chip, which that name counts.
      alone: chips of the largest slice that is one host.
      runtime: software version of a TPU VM.
      ray: its name for Ray.
    """

    label: str
    prefix: str
    cores: int
    alone: int
    runtime: str
    ray: str


KINDS = {
    "v4": Kind("tpu-v4-podslice", "v4", 2, 4, "tpu-ubuntu2204-base", "TPU-V4"),
    "v5e": Kind("tpu-v5-lite-podslice", "v5litepod", 1, 8, "v2-alpha-tpuv5-lite", "TPU-V5LITEPOD"),
    "v5p": Kind("tpu-v5p-slice", "v5p", 2, 4, "v2-alpha-tpuv5", "TPU-V5P"),
    "v6e": Kind("tpu-v6e-slice", "v6e", 1, 8, "v2-alpha-tpuv6e", "TPU-V6E"),
}
CHIPS = 4  # of a host of a slice of several


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
      topology: as `4x4x8`, the longest side last.
    """

    kind: Kind
    topology: str

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.topology.split("x"))

    @property
    def hosts(self) -> int:
        return 1 if self.chips <= self.kind.alone else self.chips // CHIPS

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def type(self) -> str:
        """Its name for `gcloud` and `xpk`: `v5litepod-256`."""
        return f"{self.kind.prefix}-{self.chips * self.kind.cores}"


def tpu_slice(text: str) -> Slice:
    """A slice by its name."""
    name, _, topology = text.partition(":")
    known = ", ".join(KINDS)
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} must be KIND:TOPOLOGY with a KIND of {known}")
    try:
        found = sides(name, topology)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    return Slice(KINDS[name], google_name(found))


def google_name(found: Sequence[int]) -> str:
    """A topology as Google writes it: `4x8x8` of 8 x 8 x 4, but `2x2x1`."""
    ordered = found if 1 in found else sorted(found)
    return "x".join(map(str, ordered))
