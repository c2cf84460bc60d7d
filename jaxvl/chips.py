"""What kinds of chips afford.

None of these figures is a measurement of ours. Sizes of tiles that `python -m
jaxvl.bench.accelerator` has measured take the place of those that follow from them
(`kernels/contrastive/sizes.py`).
"""

from __future__ import annotations

import dataclasses
import re

MIB = 2**20
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device.

    Attributes:
      flops: dense bfloat16 multiply-adds, FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      link: of a TPU one link between chips in one direction, of a GPU all its NVLinks to the
        switch, bytes/s.
      links: that an all-gather uses at once.
      vmem: bytes of VMEM that a TPU's kernel may use, passed to the compiler as its limit (below
        the physical size, which the compiler also needs); of a GPU, shared memory of one program.
      hop: seconds of latency of a message to a neighbour.
      step: seconds that a grid step of a kernel takes at least.
      smallest: topology of the fewest devices; empty: there is no compiler for it here.
      nic: between slices of TPUs, or between hosts of GPUs, bytes/s for each chip; 0: not known.
      ring: a side of a TPU's topology that is a multiple of it is closed to a ring; 0: there is a
        switch.
      clock: Hz, in which the TPU compiler's cycles are counted; None: not published.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float
    links: int
    vmem: int
    hop: float = 1e-6
    step: float = 0.35e-6
    smallest: str = ""
    nic: float = 0.0
    ring: int = 0
    clock: float | None = None

    def roofline(self, flops: float, nbytes: float) -> float:
        """Seconds that so many FLOP and bytes of memory traffic take at least, if they overlap
        perfectly."""
        return max(flops / self.flops, nbytes / self.bandwidth)


# FLOP/s, bandwidth, memory of TPUs: cloud.google.com/tpu/docs; a v4 or v5p device is a whole chip.
# Links and their latency, rings and networks of TPUs: "How To Scale Your Model"
# (jax-ml.github.io/scaling-book/tpus, tables of TPU specs). Clocks: v4 Jouppi et al. 2023 (table
# 4), v5e and v5p the same book. A grid step: jax's guide to Pallas on TPU, "Pipelining". GPUs:
# NVIDIA's data sheets of A100 SXM 40GB, H100 SXM, H200 SXM and DGX B200, dense (an NVLink's figure
# is one direction); one 400 Gb/s adapter for each. Shared memory: CUDA's programming guide,
# "Compute Capabilities", less 1 KiB.
CHIPS = {
    "v4": Chip(
        275e12, 1228e9, 32 * GIB, 45e9, 6, 14 * MIB,
        smallest="2x2x1", nic=6.25e9, ring=4, clock=1.05e9,
    ),
    "v5e": Chip(
        197e12, 819e9, 16 * GIB, 45e9, 4, 64 * MIB,
        smallest="2x2", nic=3.125e9, ring=16, clock=1.5e9,
    ),
    "v5p": Chip(
        459e12, 2765e9, 95 * GIB, 90e9, 6, 48 * MIB,
        smallest="2x2x1", nic=6.25e9, ring=4, clock=1.75e9,
    ),
    "v6e": Chip(
        918e12, 1640e9, 32 * GIB, 90e9, 4, 64 * MIB, smallest="2x2", nic=12.5e9, ring=16
    ),
    "tpu7x": Chip(1153e12, 3690e9, 96 * GIB, 90e9, 6, 32 * MIB),
    "a100": Chip(312e12, 1555e9, 40e9, 300e9, 1, 163 * 1024, 10e-6),
    "h100": Chip(
        989e12, 3350e9, 80e9, 450e9, 1, 227 * 1024, 10e-6, smallest="1x1x1", nic=50e9
    ),
    "h200": Chip(
        989e12, 4800e9, 141e9, 450e9, 1, 227 * 1024, 10e-6, smallest="1x1x1", nic=50e9
    ),
    "b200": Chip(
        2250e12, 8000e9, 180e9, 900e9, 1, 227 * 1024, 10e-6, smallest="1x1x1", nic=50e9
    ),
}  # fmt: skip
# The most careful of TPUs, and any GPU since sm_80.
UNKNOWN_TPU = Chip(197e12, 819e9, 16 * GIB, 45e9, 4, 14 * MIB)
UNKNOWN_GPU = Chip(312e12, 1555e9, 16e9, 32e9, 1, 99 * 1024, 10e-6)
# Simulated devices of one CPU, whose threads meet for every message: an all-gather up to 8 MiB.
CPU = Chip(1e11, 20e9, 2 * GIB, 10e9, 1, 0, 1e-3)

# Words of `jax.Device.device_kind` -> chip; the first that a kind has counts.
_KINDS = {
    "v6": CHIPS["v6e"],
    "v5 lite": CHIPS["v5e"],
    "v5e": CHIPS["v5e"],
    "v5": CHIPS["v5p"],
    "v4": CHIPS["v4"],
    "tpu7": CHIPS["tpu7x"],
    **{name: CHIPS[name] for name in ("b200", "h200", "h100", "a100")},
    "cpu": CPU,
}


def chip_of(device_kind: str, platform: str = "tpu") -> Chip:
    """The `Chip` of a jax `device_kind`, or the most careful one of its platform."""
    unknown = UNKNOWN_GPU if platform == "gpu" else UNKNOWN_TPU
    kind = device_kind.lower()
    return next((chip for words, chip in _KINDS.items() if words in kind), unknown)


# FLOP/s of one device by words of its `jax.Device.device_kind`: dense bfloat16 products accumulated
# in float32. Where several entries fit, the longest counts. Data sheets that give figures with 2:4
# sparsity are halved.
PEAK_FLOPS = {
    # cloud.google.com/tpu/docs; up to v3 a device is one of the two cores of a chip.
    "TPU v2": 45e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    # NVIDIA's data sheets of the A100, A30, A10, A40, L4, L40, L40S, H100, H200, H20, GH200, B200
    # and GB200.
    "A100": 312e12,
    "A30": 165e12,
    "A10": 125e12,
    "A40": 149.7e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": CHIPS["h200"].flops,
    "H200 NVL": 835e12,
    "H20": 148e12,
    "GH200": 990e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    # NVIDIA's architecture papers: GA102 (appendix A), Ada (appendix A), RTX Blackwell (appendix
    # A).
    "RTX A6000": 154.8e12,
    "RTX 3090": 71e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4080": 97.5e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
    # AMD's data sheets; one device of an MI250X is half of it.
    "MI250X": 191.5e12,
    "MI300X": 1307.4e12,
}
# Parts and slower siblings of the above, of which no figure is known.
_OTHER_CHIPS = re.compile(r"\b(laptop|mobile|max-q|mig|RTX \d+ (D|SUPER|Ti))\b", re.IGNORECASE)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device of this kind; None where it is not known, as of a CPU."""
    if _OTHER_CHIPS.search(device_kind):
        return None
    fits = [
        name
        for name in PEAK_FLOPS
        if re.search(rf"\b{re.escape(name)}\b", device_kind, re.IGNORECASE)
    ]
    return PEAK_FLOPS[max(fits, key=len)] if fits else None
