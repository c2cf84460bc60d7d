"""TPU slices by the name that `jaxvl.plan` gives them: `v5e:16x16`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Kind:
    """A generation of TPU.

    Attributes:
      dimensions: of its topologies.
      label: of Google Kubernetes Engine.
      prefix: of the names that `gcloud` and `xpk` have for a slice.
      cores: of a chip, which that name counts.
      alone: chips of the largest slice that is one host.
      runtime: software version of a TPU VM.
      ray: its name for Ray.
    """

    dimensions: int
    label: str
    prefix: str
    cores: int
    alone: int
    runtime: str
    ray: str


KINDS = {
    "v4": Kind(3, "tpu-v4-podslice", "v4", 2, 4, "tpu-ubuntu2204-base", "TPU-V4"),
    "v5e": Kind(
        2, "tpu-v5-lite-podslice", "v5litepod", 1, 8, "v2-alpha-tpuv5-lite", "TPU-V5LITEPOD"
    ),
    "v5p": Kind(3, "tpu-v5p-slice", "v5p", 2, 4, "v2-alpha-tpuv5", "TPU-V5P"),
    "v6e": Kind(2, "tpu-v6e-slice", "v6e", 1, 8, "v2-alpha-tpuv6e", "TPU-V6E"),
}
CHIPS = 4  # of a host of a slice of several


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
      topology: as `4x4x8`.
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
    kind = KINDS[name]
    sides = "x".join("N" * kind.dimensions)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or (
        topology.count("x") + 1 != kind.dimensions
    ):
        raise argparse.ArgumentTypeError(f"{text!r} must be {name}:{sides}")
    made = Slice(kind, topology)
    if made.chips > kind.alone and made.chips % CHIPS:
        raise argparse.ArgumentTypeError(
            f"{text!r} has {made.chips} chips; more than {kind.alone} must be a multiple of {CHIPS}"
        )
    return made
