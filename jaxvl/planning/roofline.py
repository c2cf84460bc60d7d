"""The least time of a step, and a range for the real one."""

from __future__ import annotations

import dataclasses

from jaxvl.chips import Chip

# Share of a chip's FLOP/s that the slow end of the range assumes. Well-tuned language models reach
# 64 to 71 % on v5p (MaxText's documentation, "Runtime performance results"); what is smaller, or
# convolves, reaches less.
EFFICIENCY = 0.5
MODEL = (
    "low: the slowest of compute at the chip's full bfloat16 speed, main memory and network at "
    "theirs, everything else hidden behind it; high: their sum, nothing hidden, compute at "
    f"{EFFICIENCY:.0%} of full speed, or what the TPU compiler expects, if that is more. An "
    "estimate from published figures, not a measurement."
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each device, by what it waits for.

    Attributes:
      compute: products and convolutions at the chip's full speed, divided evenly over the devices.
      memory: traffic of the main memory.
      ici: collectives inside a slice, or inside a host of GPUs.
      dcn: between slices, or between hosts.
      exposed: of the two, that of collectives beside which nothing is computed.
      scheduled: that the TPU compiler expects its operations to take, and `exposed`; None where it
        does not say, or the chip's clock is not published.
    """

    compute: float
    memory: float
    ici: float
    dcn: float
    exposed: float
    scheduled: float | None

    @property
    def parts(self) -> dict[str, float]:
        return {
            "compute": self.compute,
            "memory": self.memory,
            "network in a slice": self.ici,
            "network between slices": self.dcn,
        }

    @property
    def limit(self) -> str:
        """What takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def low(self) -> float:
        return max(self.parts.values())

    @property
    def high(self) -> float:
        summed = self.compute / EFFICIENCY + self.memory + self.ici + self.dcn
        return max(summed, self.scheduled or 0.0)


def scheduled_seconds(chip: Chip, cycles: int, exposed: float) -> float | None:
    return cycles / chip.clock + exposed if cycles and chip.clock else None
