"""The device mesh: axes `data, fsdp, tensor, expert`; `data` x `fsdp` shard the batch.

devices 0..7, data=2, fsdp=4:      fsdp ->
                            data   0 1 2 3     batch rows 0-1 | 2-3 | 4-5 | 6-7      of a batch of
                                               16
                              |    4 5 6 7                8-9 | ...
                              v                parameters: split in 4 along a row, the two rows hold copies

No axis shards the sequence: one row of the longest video that is trained on fits on a device beside
its model. By the TPU compiler, IMP-large (355 M parameters, dense, replicated) needs at most
6.4 GiB of a v5e for one row of 64 frames of 256 x 256 (4,096 tokens), and 7.6 for 256 frames
(16,384):

    python -m jaxvl.plan --config=configs/imp.py:variant=large,experts=0,batch=8 \\
      --topology=v5e:2x4 --quick --config.model.most_frames=256 \\
      --config.tasks.video_text.encode.drop.video=0.0 \\
      --config.tasks.video_text.data.fields.video.frames=256

So it would pay only where there are more devices than rows in a batch, which losses with in-batch
negatives do not have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvl.config import ConfigError, Range, check

AXES = ("data", "fsdp", "tensor", "expert")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per axis. One of them may be -1: whatever devices are left.

    Attributes:
      data: copies of the parameters, each with its share of the batch.
      fsdp: shards of the parameters, each with its share of the batch.
      tensor: shards of widths (heads, mlp, vocabulary).
      expert: shards of the experts of MoE layers.
    """

    data: Annotated[int, Range(-1, 1_048_576)] = -1
    fsdp: Annotated[int, Range(-1, 1_048_576)] = 1
    tensor: Annotated[int, Range(-1, 1_048_576)] = 1
    expert: Annotated[int, Range(-1, 1_048_576)] = 1

    def __post_init__(self):
        for axis in AXES:
            n = getattr(self, axis)
            check(
                n == -1 or n >= 1,
                axis,
                f"{n!r} is not a number of devices; must be >= 1, or -1 for the rest",
            )
        check(
            sum(getattr(self, a) == -1 for a in AXES) <= 1, "data", "only one mesh axis may be -1"
        )

    def shape(self, n_devices: int) -> tuple[int, ...]:
        """Devices per axis in the order of `AXES`. Raises ConfigError if the product is not
        `n_devices`."""
        sizes = [getattr(self, a) for a in AXES]
        fixed = math.prod(n for n in sizes if n != -1)
        if n_devices % fixed or (-1 not in sizes and fixed != n_devices):
            wanted = " x ".join(f"{a}={n}" for a, n in zip(AXES, sizes) if n != 1)
            raise ConfigError(
                "mesh",
                f"{wanted or 'one device'} does not fit {n_devices} devices; the product must be "
                f"{n_devices}, and one axis may be -1 for the rest",
            )
        return tuple(n_devices // fixed if n == -1 else n for n in sizes)


def make_mesh(
    config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of all (or the given) devices, with Auto axes. Use it with `jax.set_mesh`, never
    `with mesh:`."""
    devices = jax.devices() if devices is None else devices
    arranged = arrange(config.shape(len(devices)), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_of(device: jax.Device) -> int:
    """Number of the slice, or host of GPUs, that a device belongs to; 0 where there is but one."""
    try:
        return device.slice_index
    except AttributeError:  # a CPU
        return 0


def arrange(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in an array of `shape` (axes as `AXES`), neighbours on the wires near each other.

    Of several slices, or hosts of GPUs, the first axes lie across them as far as they divide:
    `data`, whose collectives are fewest, then `fsdp`. Within a slice an axis may be a part of a
    side of its grid.
    """
    slices = len({slice_of(device) for device in devices})
    across = []
    left = slices
    for size in shape:
        across.append(math.gcd(size, left))
        left //= across[-1]
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if left > 1:
        return np.asarray(devices).reshape(shape)
    within = [size // n for size, n in zip(shape, across)]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data` x `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the batch axis is split into."""
    return math.prod(mesh.shape[a] for a in BATCH_AXES)
