"""Meshes of absent accelerators to compile for, such as `compile_only_devices("v5e:4x4")`.

A jitted function lowered with shapes whose shardings lie on such a mesh is compiled by the
accelerator's own compiler, which says how much memory and how many FLOP each device would need, and
refuses what would not fit. Nothing can be run.

    TPU     needs `pip install "jaxvl[tpu]"` (libtpu of the version that jax asks for)
    GPU     H100, H200, B200: needs the CUDA plugin and its compiler: `pip install "jaxvl[gpu]"`
    CPU     `cpu:8`, this machine's simulated devices, which can also run what is compiled
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jaxvl.chips import CHIPS, Chip
from jaxvl.config import ConfigError, check, nearest
from jaxvl.sharding.libtpu import deepen_stacks
from jaxvl.slices import SLICES, sides

GPUS = ("h100", "h200", "b200")
# Chips that a compiler here makes programs for.
COMPILED = {name: chip for name, chip in CHIPS.items() if chip.smallest}

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


CHIPS_OF_HOST = 4  # libtpu takes a host for 2 x 2 chips, unless it is told
REFUSED = "INVALID_ARGUMENT"  # by a compiler that could be loaded


@dataclasses.dataclass(frozen=True)
class Topology:
    """A parsed name such as `2*v5e:16x16`.

    Attributes:
      slices: of equal size, between which there is only the data centre's network.
      name: of `COMPILED`, or "cpu".
      size: as `16x16`; empty: the smallest.
    """

    slices: int
    name: str
    size: str

    @property
    def chip(self) -> Chip | None:
        """None of a CPU."""
        return COMPILED.get(self.name)


def parse_topology(topology: str) -> Topology:
    """Raises ConfigError for a chip that is not known, a number of slices that is none, or a size
    that there is not."""
    slices, _, rest = topology.rpartition("*")
    name, _, size = rest.partition(":")
    known = [*COMPILED, "cpu"]
    if name not in known:
        raise ConfigError(
            "topology",
            f"{topology!r} is not known{nearest(name, known)} (as v5e:4x4, or 2*v5e:4x4 for two "
            f"slices; chips: {', '.join(known)})",
        )
    several = slices == "" or (slices.isdigit() and int(slices) >= 1)
    check(several, "topology", f"{topology!r}: {slices!r} is no number of slices, as in 2*v5e:4x4")
    alone = slices in ("", "1") or (name in COMPILED and name not in GPUS)
    check(
        alone, "topology", f"{topology!r}: only TPUs come in slices (GPUs: h200:1x4x8 is 4 hosts)"
    )
    if size:
        _check_size(topology, name, size)
    return Topology(int(slices or 1), name, size)


def _check_size(topology: str, name: str, size: str) -> None:
    """What a compiler would refuse in its own words, or take although there is no such slice."""
    if name in SLICES:
        try:
            sides(name, size)
        except ValueError as error:
            raise ConfigError("topology", f"{topology!r} {error}") from None
    if name in GPUS:
        fits = re.fullmatch(r"1x[1-9][0-9]*x[1-9][0-9]*", size) is not None
        problem = f"{topology!r} must be {name}:1xHOSTSxGPUS, as {name}:1x2x8 for 2 hosts of 8"
        check(fits, "topology", problem)


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
      ConfigError: there is no such name or size, or the compiler refuses it or is not installed.
    """
    parsed = parse_topology(topology)
    if parsed.chip is None:
        return _own_devices(topology, parsed.size or "1")
    name = parsed.name
    size = parsed.size or parsed.chip.smallest
    try:
        return _gpus(name, size) if name in GPUS else _tpus(name, size, parsed.slices)
    except Exception as error:  # PJRT plugins raise bare RuntimeErrors
        said = str(error).splitlines()[0]
        problem = f"{topology!r} cannot be compiled for: {said}"
        if not said.startswith(REFUSED):
            extra = "gpu" if name in GPUS else "tpu"
            problem += f" (the compiler: pip install 'jaxvl[{extra}]')"
        raise ConfigError("topology", problem) from None


def _gpus(name: str, size: str) -> Sequence[jax.Device]:
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=target_config(name), topology=size
    ).devices


def _tpus(name: str, size: str, slices: int) -> Sequence[jax.Device]:
    for variable, value in COMPILE_ONLY.items():
        os.environ.setdefault(variable, value)
    deepen_stacks()
    options: dict[str, str | int | tuple[int, ...]] = {}
    # Two cores of a v4 are one device of a real run ("megacore"), as they are by themselves on the
    # others.
    if name == "v4":
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    of_host = sides(name, size)
    if math.prod(of_host) < CHIPS_OF_HOST:
        options["chips_per_host_bounds"] = (*of_host, 1)[:3]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{name}:{size}", **options
    ).devices


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
