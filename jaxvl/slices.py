"""Slices of TPUs that Google Cloud has.

Needs no JAX, so that the launcher can read it. Shapes: cloud.google.com/tpu/docs,
pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (configurations) and "TPU types and topologies"
(a shape of three sides has A <= B <= C, each a multiple of 4 where one is more than 4); a v5p's of
one and two chips: "Plan TPUs" of Google Kubernetes Engine.
"""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of the slices of a kind of TPU.

    Attributes:
      listed: as Google writes them.
      largest: chips of the largest slice whose sides are multiples of 4; 0: there are only those
        that are listed.
    """

    listed: tuple[str, ...]
    largest: int = 0

    @property
    def told(self) -> str:
        """The shapes, for a message."""
        *others, last = self.listed
        if not self.largest:
            return f"{', '.join(others)} or {last}"
        return f"{', '.join(self.listed)}, or multiples of 4 with {self.largest:,} chips at most"


_FLAT = Shapes(("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"))
_OF_HOSTS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
SLICES = {
    "v4": Shapes(_OF_HOSTS, 4096),
    "v5e": _FLAT,
    "v5p": Shapes(("1x1x1", "2x1x1", *_OF_HOSTS), 8960),
    "v6e": _FLAT,
}


def sides(kind: str, size: str) -> tuple[int, ...]:
    """Sides of a slice of a kind in `SLICES`: (8, 8, 4) of `8x8x4`, in chips.

    Raises:
      ValueError: there is no such slice; says what it must be.
    """
    shapes = SLICES[kind]
    dimensions = shapes.listed[0].count("x") + 1
    written = re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})*", size)
    found = tuple(int(side) for side in size.split("x")) if written else ()
    cubes = all(side % 4 == 0 for side in found) and math.prod(found) <= shapes.largest
    if len(found) == dimensions and (size in shapes.listed or cubes):
        return found
    example = "x".join(["4"] * dimensions)
    raise ValueError(
        f"must be {kind}:{'x'.join('N' * dimensions)}, as {kind}:{example}: {shapes.told}"
    )
