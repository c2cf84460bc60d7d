"""How fast this process's devices compute, by a program of their own.

Every step ends for all processes when it ends for the slowest, so no time of a step tells who that
is. A program without a collective does. It runs when the processes have just conferred
(`agreement.py`): then no step is under way anywhere, and it costs `SECONDS` each time.

It multiplies matrices. So it shows a device that computes slowly: throttled by heat or power, or a
core that others use too. It shows neither slow memory nor a slow link, nor one that has more to do
than the others.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvl.chips import peak_flops

SECONDS = 0.004  # of the program, at the peak of the device
_POLL = 5e-5  # seconds between two looks
_SIZE = 2048  # rows and columns of the matrices: 8 MiB each, three at a time
# Where the peak is not known, as of a CPU.
_PEAK = 5e10
_SMALL = 512


class Probe:
    """Times the devices; the same work on all of one kind.

    Attributes:
      devices: in the order of their times.
      alone: whether the times are those of the devices alone. A CPU computes for others too.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        self.devices = list(devices)
        peak = peak_flops(devices[0].device_kind)
        self.alone = self.devices[0].platform != "cpu"
        size = _SMALL if peak is None else _SIZE
        rounds = math.ceil(SECONDS * (peak or _PEAK) / (2 * size**3))
        self._mesh = Mesh(np.array(self.devices), ("own",), axis_types=(AxisType.Auto,))
        own = NamedSharding(self._mesh, PartitionSpec("own"))

        def multiply(matrices: jax.Array) -> jax.Array:
            step = lambda _, found: jnp.einsum("dij,djk->dik", found, matrices)
            return jax.lax.fori_loop(0, rounds, step, matrices)

        # Of random signs, so that products neither grow nor vanish.
        dtype = np.float32 if peak is None else jnp.bfloat16
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (size, size)) / math.sqrt(size)
        shape = (len(self.devices), size, size)
        self._matrices = jax.make_array_from_callback(
            shape, own, lambda _: np.asarray(signs, dtype)[None]
        )
        self._program = jax.jit(multiply, in_shardings=own, out_shardings=own)
        self._times: list[list[float]] = []
        self.run()  # compiles it
        self.forget()

    def run(self) -> None:
        """Times every device once. Nothing else may be under way on them."""
        with jax.set_mesh(self._mesh):
            began = time.perf_counter()
            products = self._program(self._matrices)
        waiting = {shard.device: shard.data for shard in products.addressable_shards}
        times = {}
        while waiting:
            time.sleep(_POLL)
            now = time.perf_counter()
            for device in [device for device, data in waiting.items() if data.is_ready()]:
                del waiting[device]
                times[device] = now - began
        self._times.append([times[device] for device in self.devices])

    def forget(self) -> None:
        """Begins anew."""
        self._times = []

    def slowest(self) -> tuple[float, int]:
        """Seconds, in the median of all times, of the slowest device, and its number among
        `devices`; (0, 0) before the first."""
        medians = [statistics.median(own) for own in zip(*self._times)] or [0.0]
        worst = max(range(len(medians)), key=medians.__getitem__)
        return medians[worst], worst

    @property
    def count(self) -> int:
        """Times of each device so far."""
        return len(self._times)
