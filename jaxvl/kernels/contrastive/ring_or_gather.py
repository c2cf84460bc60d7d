"""How the blocks of a mesh meet: by an all-gather, or over a ring; by what the chips afford."""

from __future__ import annotations

from jaxvl.chips import Chip

# An all-gather may take this part of a device's memory.
GATHER_SHARE = 1 / 256
# Messages of a round, one after the other in time: the block, and the vectors of its columns.
MESSAGES = 2
# Forward one product, backward four in two passes; v travels twice, u once.
PRODUCTS = 5
PASSES = 3


def ring_seconds(chip: Chip, shards: int, rows: int, width: int, itemsize: int) -> float:
    """Seconds of forward and backward pass over a ring, by latency, bytes and FLOP.

    Half of the rounds each way, two blocks a round, which travel while two are computed:

        passes * (n - 1) / 2 * max(messages * hop + block / link, 2 * compute)
    """
    block = rows * width * itemsize
    compute = PRODUCTS / PASSES * 2 * rows * rows * width / chip.flops
    travel = MESSAGES * chip.hop + block / chip.link
    return PASSES * ((shards - 1) / 2 * max(travel, 2 * compute) + compute)


def gather_seconds(chip: Chip, shards: int, rows: int, width: int, itemsize: int) -> float:
    """The same with all-gathers, which use all links at once and nothing hides:

        passes * (sqrt(n) * hop + (n - 1) * block / (links * link) + n * compute)

    sqrt(n) hops: the way along the two sides of a torus, one half of each.
    """
    block = rows * width * itemsize
    compute = PRODUCTS / PASSES * 2 * rows * rows * width / chip.flops
    travel = shards**0.5 * chip.hop + (shards - 1) * block / (chip.links * chip.link)
    return PASSES * (travel + shards * compute)


def collective(chip: Chip, shards: int, rows: int, width: int, itemsize: int) -> str:
    """ "gather" where it is faster by these figures and takes a small part of the memory, else
    "ring"; `rows`: of v on each device."""
    gathered = shards * rows * width * itemsize
    if gathered > chip.memory * GATHER_SHARE:
        return "ring"
    work = shards, rows, width, itemsize
    return "gather" if gather_seconds(chip, *work) <= ring_seconds(chip, *work) else "ring"
