"""How the blocks of a mesh meet: by an all-gather, over a ring, or in a grid; by what the chips
afford, or as the run says.

Seconds of forward and backward pass over n devices with b rows of v each, in slices of n / S, by
latency, bytes and FLOP; `block` = b D bytes, `compute` of one block in one of `passes`:

    gather    passes (sqrt(n) hop + (n - 1) block / (links link) + n compute)
    ring      passes ((n - 1) / 2 max(messages hop + block / link, 2 compute) + compute)
    grid      4 (sqrt(R) + sqrt(C)) messages hop + passes n compute
              + (R + C - 2) block (1 + 4 / itemsize) / (links link / 2)

An all-gather uses all links at once, and nothing hides it. sqrt(n) hops are the way along the two
sides of a torus, one half of each. Over the ring two blocks travel while two are computed. The
grid of R x C gathers and returns both sides, forward and backward, each over half of the links;
sums of gradients return in float32.

Between slices there are S - 1 blocks more, by the adapter: in each pass of gather and ring, where
the ring hides it if it can, and once in each dtype of the grid.

A gather holds n blocks, a grid R + C and their gradients; each may take but a part of the memory.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from jaxvl.chips import Chip

Collective = Literal["gather", "ring", "grid"]
Choice = Literal["auto", "gather", "ring", "grid"]
NAMES: tuple[Collective, ...] = ("gather", "ring", "grid")

# Parts of a device's memory that they may take.
GATHER_SHARE = 1 / 256
GRID_SHARE = 1 / 64
# Messages of a round, one after the other in time: the block, and the vectors of its columns.
MESSAGES = 2
# Forward one product, backward four in two passes; v travels twice, u once.
PRODUCTS = 5
PASSES = 3
SUMS = 4  # bytes of an element of a gradient's partial sum


@dataclasses.dataclass(frozen=True)
class Work:
    """What meets.

    Attributes:
      shards: devices.
      grid: (slices, grid rows of a slice, devices of a grid row); their product is `shards`.
      rows: of v on each device.
      width, itemsize: of a row, and bytes of an element.
    """

    shards: int
    grid: tuple[int, int, int]
    rows: int
    width: int
    itemsize: int

    @property
    def block(self) -> int:
        """Bytes."""
        return self.rows * self.width * self.itemsize

    @property
    def gathered(self) -> int:
        """Blocks that a device of the grid holds, its own included for each side."""
        slices, column, row = self.grid
        return slices * column + row

    def compute(self, chip: Chip) -> float:
        """Seconds of a block in one pass."""
        return PRODUCTS / PASSES * 2 * self.rows**2 * self.width / chip.flops

    def crossing(self, chip: Chip) -> float:
        """Seconds in which a block crosses to all other slices; 0 where nothing is known."""
        slices = self.grid[0]
        return (slices - 1) * self.block / chip.nic if chip.nic else 0.0


def ring_seconds(chip: Chip, work: Work) -> float:
    compute = work.compute(chip)
    travel = MESSAGES * chip.hop + work.block / chip.link
    inside = (work.shards - 1) / 2 * max(travel, 2 * compute)
    return PASSES * (max(inside, work.crossing(chip)) + compute)


def gather_seconds(chip: Chip, work: Work) -> float:
    travel = work.shards**0.5 * chip.hop + (work.shards - 1) * work.block / (chip.links * chip.link)
    return PASSES * (travel + work.crossing(chip) + work.shards * work.compute(chip))


def grid_seconds(chip: Chip, work: Work) -> float:
    slices, column, row = work.grid
    hops = 4 * MESSAGES * (math.sqrt(slices * column) + math.sqrt(row)) * chip.hop
    there_and_back = 1 + SUMS / work.itemsize
    links = max(chip.links / 2, 1) * chip.link
    travel = (work.gathered - 2) * work.block / links + work.crossing(chip)
    return hops + there_and_back * travel + PASSES * work.shards * work.compute(chip)


def collective(chip: Chip, work: Work) -> Collective:
    """The fastest of those that take a small part of the memory; the ring takes none."""
    held = {
        "gather": work.shards * work.block / GATHER_SHARE,
        "grid": work.gathered * work.block * (1 + SUMS / work.itemsize) / GRID_SHARE,
    }
    seconds = {"gather": gather_seconds, "grid": grid_seconds, "ring": ring_seconds}
    fits = [name for name in seconds if held.get(name, 0) <= chip.memory]
    return min(fits, key=lambda name: seconds[name](chip, work))


# --------------------------------------------------------------------------------------------------
# As the run says

_chosen: contextvars.ContextVar[Collective | None] = contextvars.ContextVar("chosen", default=None)


@contextlib.contextmanager
def using(name: Choice) -> Iterator[None]:
    """Contrastive losses that are traced in this context, and name no collective, take this one;
    "auto": the model's choice.

    Raises:
      ValueError: a name that is none of these.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"collective: {name!r} is not valid; must be one of {('auto', *NAMES)}")
    before = _chosen.set(None if name == "auto" else name)
    try:
        yield
    finally:
        _chosen.reset(before)


def chosen() -> Collective | None:
    """What `using` says; None: the model chooses."""
    return _chosen.get()
