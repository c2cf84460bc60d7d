"""What accelerators can do, and meshes of absent ones to compile for.

Such as `compile_only_devices("v5e:4x4")`.
A jitted function lowered with shapes whose shardings lie on such a mesh is compiled by the
accelerator's own compiler, which says how much memory and how many FLOP each device would need, and
refuses what would not fit. Nothing can be run.

    TPU     needs `pip install "jaxvl[tpu]"` (libtpu of the version that jax asks for)
    GPU     H100, H200, B200: needs the CUDA plugin and its compiler: `pip install "jaxvl[gpu]"`
    CPU     `cpu:8`, this machine's simulated devices, which can also run what is compiled
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jaxvl.config import ConfigError, check, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device.

    Attributes:
      flops: bfloat16 multiply-adds, FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      smallest: topology of the fewest devices.
      link: of a TPU one link between chips in one direction, of a GPU all its NVLinks to the
        switch, bytes/s.
      nic: between slices of TPUs, or between hosts of GPUs, bytes/s for each chip.
      ring: a side of a TPU's topology that is a multiple of it is closed to a ring; 0: there is a
        switch.
      clock: Hz, in which the TPU compiler's cycles are counted; None: not published.
    """

    flops: float
    bandwidth: float
    memory: float
    smallest: str
    link: float
    nic: float
    ring: int
    clock: float | None = None

    def roofline(self, flops: float, nbytes: float) -> float:
        """Seconds that so many FLOP and bytes of memory traffic take at least, if they overlap
        perfectly."""
        return max(flops / self.flops, nbytes / self.bandwidth)


# TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); a v4 or v5p device is a whole chip. Links,
# rings and networks of TPUs: "How To Scale Your Model" (jax-ml.github.io/scaling-book/tpus, tables
# of TPU specs). Clocks: v4 Jouppi et al. 2023 (table 4), v5e and v5p the same book. GPUs: NVIDIA's
# data sheets of H100 SXM, H200 SXM and DGX B200, dense; one 400 Gb/s adapter for each.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * 2**30, "2x2x1", 45e9, 6.25e9, 4, 1.05e9),
    "v5e": Chip(197e12, 819e9, 16 * 2**30, "2x2", 45e9, 3.125e9, 16, 1.5e9),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, "2x2x1", 90e9, 6.25e9, 4, 1.75e9),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, "2x2", 90e9, 12.5e9, 16),
    "h100": Chip(989e12, 3350e9, 80e9, "1x1x1", 450e9, 50e9, 0),
    "h200": Chip(989e12, 4800e9, 141e9, "1x1x1", 450e9, 50e9, 0),
    "b200": Chip(2250e12, 8000e9, 180e9, "1x1x1", 900e9, 50e9, 0),
}
GPUS = ("h100", "h200", "b200")

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


# What the CUDA compiler has to know of the device (`xla::TargetConfig`), and in what the others
# differ from an H200.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
_OTHER_GPUS = {
    "h200": {},
    "h100": {
        "memory_bandwidth: 4800000000000": "memory_bandwidth: 3350000000000",
        "device_memory_size: 150000000000": "device_memory_size: 85000000000",
        "NVIDIA H200": "NVIDIA H100 80GB HBM3",
    },
    "b200": {
        "major: 9 minor: 0": "major: 10 minor: 0",
        "core_count: 132": "core_count: 148",
        "memory_bandwidth: 4800000000000": "memory_bandwidth: 8000000000000",
        "l2_cache_size: 52428800": "l2_cache_size: 132644864",
        "device_memory_size: 150000000000": "device_memory_size: 191000000000",
        "clock_rate_ghz: 1.98": "clock_rate_ghz: 1.965",
        "NVIDIA H200": "NVIDIA B200",
    },
}


def target_config(gpu: str) -> str:
    """The CUDA compiler's description of one of `GPUS`."""
    text = H200
    for of_h200, own in _OTHER_GPUS[gpu].items():
        text = text.replace(of_h200, own)
    return text


# libtpu would ask a cloud machine's metadata for the first three, and complain where there is none.
# They do not restrict the topology. The last: it refuses to be loaded beside another process that
# has it, or had and was killed, as if both were to use the chip.
COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A parsed name such as `2*v5e:16x16`.

    Attributes:
      slices: of equal size, between which there is only the data centre's network.
      name: of `CHIPS`, or "cpu".
      size: as `16x16`; empty: the smallest.
    """

    slices: int
    name: str
    size: str

    @property
    def chip(self) -> Chip | None:
        """None of a CPU."""
        return CHIPS.get(self.name)


def parse_topology(topology: str) -> Topology:
    """Raises ConfigError for a chip that is not known, or a number of slices that is none."""
    slices, _, rest = topology.rpartition("*")
    name, _, size = rest.partition(":")
    known = [*CHIPS, "cpu"]
    if name not in known:
        raise ConfigError(
            "topology",
            f"{topology!r} is not known{nearest(name, known)} (as v5e:4x4, or 2*v5e:4x4 for two "
            f"slices; chips: {', '.join(known)})",
        )
    several = slices == "" or (slices.isdigit() and int(slices) >= 1)
    check(several, "topology", f"{topology!r}: {slices!r} is no number of slices, as in 2*v5e:4x4")
    alone = slices in ("", "1") or (name in CHIPS and name not in GPUS)
    check(
        alone, "topology", f"{topology!r}: only TPUs come in slices (GPUs: h200:1x4x8 is 4 hosts)"
    )
    return Topology(int(slices or 1), name, size)


def chip(topology: str) -> Chip:
    """The `Chip` of a topology's name. Raises ConfigError for one that is not known, and for a
    CPU, of which there are no figures."""
    known = parse_topology(topology).chip
    check(known is not None, "topology", f"{topology!r}: there are no figures of a CPU")
    return known


def compile_only_devices(topology: str) -> Sequence[jax.Device]:
    """Devices of a `topology` such as "v5e:4x4", "v5p:4x4x4", "2*v5e:16x16" or "h200:1x1x8" (hosts
    and GPUs: 1 x hosts x per host); of "cpu:8" the first 8 of this machine's own.

    Without a size: the smallest there is.

    Raises:
      ConfigError: the name or size is not one that the compiler knows, or the compiler is not
        installed.
    """
    parsed = parse_topology(topology)
    if parsed.chip is None:
        return _own_devices(topology, parsed.size or "1")
    name = parsed.name
    size = parsed.size or parsed.chip.smallest
    try:
        if name in GPUS:
            return topologies.get_topology_desc(
                platform="cuda",
                topology_name=name,
                target_config=target_config(name),
                topology=size,
            ).devices
        for variable, value in COMPILE_ONLY.items():
            os.environ.setdefault(variable, value)
        # Two cores of a v4 are one device of a real run ("megacore"), as they are by themselves on
        # the others.
        options: dict[str, str | int] = {"chip_config_name": "megacore"} if name == "v4" else {}
        if parsed.slices > 1:
            options["num_slices"] = parsed.slices
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{size}", **options
        ).devices
    except Exception as error:  # PJRT plugins raise bare RuntimeErrors
        extra = "gpu" if name in GPUS else "tpu"
        raise ConfigError(
            "topology",
            f"{topology!r} cannot be compiled for: {str(error).splitlines()[0]} (the "
            f"compiler: pip install 'jaxvl[{extra}]')",
        ) from None


def _own_devices(topology: str, size: str) -> Sequence[jax.Device]:
    check(
        size.isdigit() and int(size) >= 1, "topology", f"{topology!r} must be as cpu:8, 8 devices"
    )
    devices = jax.devices("cpu")
    there = len(devices) >= int(size)
    problem = (
        f"{topology!r}: this process has {len(devices)} CPU devices; start it with "
        f"JAX_NUM_CPU_DEVICES={size}"
    )
    check(there, "topology", problem)
    return devices[: int(size)]
