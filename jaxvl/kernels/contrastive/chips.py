"""What kinds of chips afford, as far as sizes of tiles and the choice of a collective ask.

None of these figures is a measurement of ours. What `python -m jaxvl.bench.accelerator` measures
takes their place: sizes by `sizes.measured`.
"""

from __future__ import annotations

import dataclasses

MIB = 2**20
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      vmem: bytes of VMEM a TPU's kernel may use, passed to the compiler as its limit (below the
        physical size, which the compiler also needs); of a GPU, shared memory of one program.
      flops: dense bfloat16 multiply-adds, FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      link: one link in one direction, bytes/s; of a GPU, all its links to the switch.
      links: links that an all-gather uses at once.
      hop: seconds of latency of a message to a neighbour.
      step: seconds that a grid step of a kernel takes at least.
    """

    vmem: int
    flops: float
    bandwidth: float
    memory: float
    link: float
    links: int
    hop: float = 1e-6
    step: float = 0.35e-6


# By words of `device_kind`, first match. FLOP/s, bandwidth, memory: cloud.google.com/tpu/docs and
# NVIDIA's data sheets (an NVLink's figure is one direction). Links and their latency: "How To Scale
# Your Model", jax-ml.github.io/scaling-book/tpus. A grid step: jax's guide to Pallas on TPU,
# "Pipelining". Shared memory: CUDA's programming guide, "Compute Capabilities", less 1 KiB.
CHIPS = {
    "v6": Chip(64 * MIB, 918e12, 1640e9, 32 * GIB, 90e9, 4),
    "v5 lite": Chip(64 * MIB, 197e12, 819e9, 16 * GIB, 45e9, 4),
    "v5e": Chip(64 * MIB, 197e12, 819e9, 16 * GIB, 45e9, 4),
    "v5": Chip(48 * MIB, 459e12, 2765e9, 95 * GIB, 90e9, 6),
    "v4": Chip(14 * MIB, 275e12, 1228e9, 32 * GIB, 45e9, 6),
    "tpu7": Chip(32 * MIB, 1153e12, 3690e9, 96 * GIB, 90e9, 6),
    "b200": Chip(227 * 1024, 2250e12, 8000e9, 180e9, 900e9, 1, 10e-6),
    "h200": Chip(227 * 1024, 989e12, 4800e9, 141e9, 450e9, 1, 10e-6),
    "h100": Chip(227 * 1024, 989e12, 3350e9, 80e9, 450e9, 1, 10e-6),
    "a100": Chip(163 * 1024, 312e12, 1555e9, 40e9, 300e9, 1, 10e-6),
    # Simulated devices of one CPU, whose threads meet for every message: an all-gather up to 8 MiB.
    "cpu": Chip(0, 1e11, 20e9, 2 * GIB, 10e9, 1, 1e-3),
}
# The most careful of TPUs, and any GPU since sm_80.
UNKNOWN_TPU = Chip(14 * MIB, 197e12, 819e9, 16 * GIB, 45e9, 4)
UNKNOWN_GPU = Chip(99 * 1024, 312e12, 1555e9, 16e9, 32e9, 1, 10e-6)


def chip_of(device_kind: str, platform: str = "tpu") -> Chip:
    """The `Chip` of a jax `device_kind`, or the most careful one of its platform."""
    unknown = UNKNOWN_GPU if platform == "gpu" else UNKNOWN_TPU
    kind = device_kind.lower()
    return next((chip for name, chip in CHIPS.items() if name in kind), unknown)


# --------------------------------------------------------------------------------------------------
# An all-gather, or a ring

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
