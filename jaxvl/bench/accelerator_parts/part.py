"""What the parts share: sizes, a clock that ends a part, and times of programs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import jax

from jaxvl.aliases import Json

Row = dict[str, Json]


class Deadline:
    """When a part has to end.

    Args:
      seconds: from now.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large what is measured is.

    Attributes:
      rows, widths: B and D of the contrastive core.
      kernel_rows: B of the comparison with float64.
      repeats: of a time, of which the median counts.
      least: seconds that one of them takes at least, in as many calls as that needs.
      attention: (B, T, H, K) of the attention.
      tiny: models of a few thousand parameters, kernels in an interpreter.
    """

    rows: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)
    widths: tuple[int, ...] = (512, 768)
    kernel_rows: int = 1200
    repeats: int = 5
    least: float = 0.05
    attention: tuple[tuple[int, int, int, int], ...] = ((256, 197, 12, 64), (128, 257, 16, 64))
    tiny: bool = False


# On a CPU, to see that everything runs.
TINY = Sizes(
    rows=(256,),
    widths=(128,),
    kernel_rows=160,
    repeats=1,
    least=0.0,
    attention=((2, 17, 2, 8),),
    tiny=True,
)

Part = Callable[[Sizes, Deadline], Iterator[Row]]


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    name = jax.devices()[0].platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def seconds_of(take: Callable[[], object], sizes: Sizes) -> float:
    """Median seconds of a call. Calls are queued until `sizes.least` is filled, and waited for
    together, so that the host's part of short ones is hidden as it is in training."""
    jax.block_until_ready(take())
    began = time.perf_counter()
    jax.block_until_ready(take())
    once = max(time.perf_counter() - began, 1e-6)
    calls = max(1, round(sizes.least / once))
    found = []
    for _ in range(sizes.repeats):
        began = time.perf_counter()
        for _ in range(calls):
            last = take()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)


def reason(error: Exception) -> str:
    """Why something cannot run, in a line."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:150]}"
