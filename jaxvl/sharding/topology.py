"""What accelerators can do, and meshes of absent ones to compile for.

Such as `compile_only_devices("v5e:4x4")`.
A jitted function lowered with shapes whose shardings lie on such a mesh is compiled by the
accelerator's own compiler, which says how much memory and how many FLOP each device would need, and
refuses what would not fit. Nothing can be run.

    TPU     needs `pip install "jaxvl[tpu]"` (libtpu of the version that jax asks for)
    H200    needs the CUDA plugin and its compiler: `pip install "jaxvl[gpu]"`
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jaxvl.config import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device.

    Attributes:
      flops: bfloat16 multiply-adds, FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      smallest: topology of the fewest devices.
    """

    flops: float
    bandwidth: float
    memory: float
    smallest: str

    def roofline(self, flops: float, nbytes: float) -> float:
        """Seconds that so many FLOP and bytes of memory traffic take at least, if they overlap
        perfectly."""
        return max(flops / self.flops, nbytes / self.bandwidth)


# TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); a v4 or v5p device is a whole chip. H200:
# NVIDIA's data sheet, dense.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * 2**30, "2x2x1"),
    "v5e": Chip(197e12, 819e9, 16 * 2**30, "2x2"),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, "2x2x1"),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, "2x2"),
    "h200": Chip(989e12, 4800e9, 141e9, "1x1x1"),
}

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


# What the CUDA compiler has to know of the device (`xla::TargetConfig`).
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

# libtpu would ask a cloud machine's metadata for the first three, and complain where there is none.
# They do not restrict the topology. The last: it refuses to be loaded beside another process that
# has it, or had and was killed, as if both were to use the chip.
COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def chip(topology: str) -> Chip:
    """The `Chip` of a topology's name. Raises ConfigError for one that is not known."""
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise ConfigError(
            "topology",
            f"{topology!r} is not known{nearest(name, list(CHIPS))} (as v5e:4x4; chips: "
            f"{', '.join(CHIPS)})",
        )
    return CHIPS[name]


def compile_only_devices(topology: str) -> Sequence[jax.Device]:
    """Devices of a `topology` such as "v5e:4x4", "v5p:4x4x4" or "h200:1x1x8" (hosts and GPUs: 1 x
    hosts x per host).

    Without a size: the smallest there is.

    Raises:
      ConfigError: the name or size is not one that the compiler knows, or the compiler is not
        installed.
    """
    known = chip(topology)
    name, _, size = topology.partition(":")
    size = size or known.smallest
    try:
        if name.startswith("h"):
            return topologies.get_topology_desc(
                platform="cuda", topology_name=name, target_config=H200, topology=size
            ).devices
        for variable, value in COMPILE_ONLY.items():
            os.environ.setdefault(variable, value)
        # Two cores of a v4 are one device of a real run ("megacore"), as they are by themselves on
        # the others.
        options = {"chip_config_name": "megacore"} if name == "v4" else {}
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{size}", **options
        ).devices
    except Exception as error:  # PJRT plugins raise bare RuntimeErrors
        extra = "gpu" if name.startswith("h") else "tpu"
        raise ConfigError(
            "topology",
            f"{topology!r} cannot be compiled for: {str(error).splitlines()[0]} (the "
            f"compiler: pip install 'jaxvl[{extra}]')",
        ) from None
