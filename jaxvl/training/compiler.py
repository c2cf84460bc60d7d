"""What XLA is told beside its defaults: `config.compiler=recommended`.

The flags go to the compilation of each step, not into `XLA_FLAGS`: one that a version does not know
is an error with its name, where in the environment it would end the process, and a plan for absent
chips is compiled with those of the chips. A flag that is set in `XLA_FLAGS` or `LIBTPU_INIT_ARGS`
is left as it is.

Each is recommended by who makes the compiler or the chip; those of accelerators have not been
measured here, so that the default is none of them. On a CPU both choices are what was measured.
Left alone, as today's defaults are what was once recommended, or as the
sources disagree:

    command buffers (CUDA graphs), asynchronous collectives, priority of their stream: on
    the latency hiding scheduler of TPUs: on
    xla_gpu_enable_triton_gemm: NVIDIA's older list has false, JAX's page xla_gpu_triton_gemm_any
    xla_gpu_*_combine_threshold_bytes: by the size of a layer's weights

What is no flag of XLA is set where processes are started (`launch/submit.py --env`):
XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, and NCCL_NVLS_ENABLE=1 on H100 and later, for memory (NVIDIA's
page).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Literal

from jax.sharding import Mesh

from jaxvl.sharding.libtpu import STACK
from jaxvl.sharding.mesh import slice_of

Choice = Literal["default", "recommended"]
Options = dict[str, bool | int | str]

_JAX = "docs.jax.dev/en/latest/xla_flags.html"
_JAX_GPU = "docs.jax.dev/en/latest/gpu_performance_tips.html"
_NVIDIA = "docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance"
_MAXTEXT = "github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of XLA.

    Attributes:
      name: without dashes.
      value: that is recommended.
      reason: what it does.
      source: who recommends it.
      kind: regular expression of the kinds of devices that it is for.
      several: whether only for meshes of several slices.
      measured: whether `default` has it too.
    """

    name: str
    value: bool | int | str
    reason: str
    source: str
    kind: str = ""
    several: bool = False
    measured: bool = False


TPU = (
    Flag(
        "xla_tpu_enable_async_collective_fusion",
        True,
        "products and loops run between start and end of a collective",
        _JAX,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "true",
        "all-gathers of fsdp too",
        _JAX,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        True,
        "one collective goes on beside several products",
        _JAX,
    ),
    Flag(
        "xla_tpu_overlap_compute_collective_tc",
        True,
        "computation and communication on one core at once",
        _JAX,
    ),
    Flag("xla_enable_async_all_gather", "true", "all-gathers are asynchronous", _JAX),
    Flag("xla_enable_async_collective_permute", "true", "so are the ring's permutations", _JAX),
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        True,
        "sums of gradients between slices begin while the backward pass goes on",
        _JAX,
        several=True,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        True,
        "the same over rounds of a loop; takes more memory",
        _JAX,
        several=True,
    ),
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        98304,
        "fusions and kernels may use three quarters of the 128 MiB on the chip",
        _MAXTEXT,
        kind="TPU v6",
    ),
)
GPU = (
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler",
        True,
        "collectives run beside computation",
        _JAX_GPU,
    ),
    Flag(
        "xla_gpu_enable_pipelined_all_gather",
        True,
        "a layer's weights are gathered while the one before is computed",
        _NVIDIA,
    ),
    Flag(
        "xla_gpu_enable_pipelined_reduce_scatter",
        True,
        "gradients of a layer are summed while the next is computed",
        _NVIDIA,
    ),
    Flag("xla_gpu_enable_pipelined_all_reduce", True, "the same without fsdp", _NVIDIA),
    Flag(
        "xla_gpu_enable_while_loop_double_buffering",
        True,
        "rounds of a scan over layers overlap, without copies between them",
        _NVIDIA,
    ),
)
CPU = (
    Flag(
        "xla_cpu_scheduler_type",
        "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "the order of least memory, not the one in which most could run at once: a step of CLIP "
        "ViT-B/32 whose layers are scanned, batch 32, has 2.16 GiB of temporaries for 2.60",
        "python -m jaxvl.bench.step",
        measured=True,
    ),
)
_FLAGS = {"cpu": CPU, "tpu": TPU, "gpu": GPU, "cuda": GPU}
_TEXTS: contextvars.ContextVar[str | None] = contextvars.ContextVar("texts", default=None)


@contextlib.contextmanager
def writing_texts(folder: str) -> Iterator[None]:
    """Steps compiled inside are written to the folder as XLA's texts, with where every value lies
    in memory and for how long."""
    token = _TEXTS.set(folder)
    try:
        yield
    finally:
        _TEXTS.reset(token)


def own_flags() -> dict[str, str]:
    """Name -> value of what the user has set in the environment; without the size of stacks, which
    is set for libtpu's own sake (`sharding/libtpu.py`)."""
    words = f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('LIBTPU_INIT_ARGS', '')}".split()
    pairs = (word.lstrip("-").partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs if name != STACK}


def compiler_options(choice: Choice, mesh: Mesh) -> Options:
    """The options of `jax.stages.Lowered.compile` for the devices of a mesh, which may be absent,
    without those that the user has set."""
    folder = _TEXTS.get()
    texts: Options = {} if folder is None else {"xla_dump_to": folder}
    own = own_flags()
    device = mesh.devices.flat[0]
    slices = len({slice_of(device) for device in mesh.devices.flat})
    flags: Options = {
        flag.name: flag.value
        for flag in _FLAGS.get(device.platform, ())
        if re.match(flag.kind, device.device_kind)
        and flag.name not in own
        and (slices > 1 or not flag.several)
        and (choice == "recommended" or flag.measured)
    }
    return flags | texts


def describe_options(choice: Choice, options: Options) -> str:
    """The log's line."""
    told = ", ".join(f"{name}={value}" for name, value in options.items()) or "no flags"
    own = ", ".join(f"{name}={value}" for name, value in own_flags().items())
    line = f"compiler: {choice}, {told}"
    return f"{line}; from the environment: {own}" if own else line
