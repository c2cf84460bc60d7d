"""Sizes of tiles: measured ones where there are, else those of a cost model.

Measured ones are in a JSON file that the environment variable `JAXVL_BLOCKS` names, written by
`python -m jaxvl.bench.accelerator`:

    {"TPU v5 lite": {"pallas_tpu": [
        {"pass": "forward", "dtype": "bfloat16", "width": 768, "tile": {"rows": 512, "cols": 1024}},
        …]}}

An entry counts for its kind of device, kernel, pass ("forward", "backward") and dtype, and for
widths up to its own that no smaller entry covers.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvl.chips import Chip

VARIABLE = "JAXVL_BLOCKS"
PASSES = ("forward", "backward")


def measured(
    device_kind: str, kernel: str, which: str, dtype: DTypeLike, width: int
) -> Mapping[str, int] | None:
    """Fields of the fastest tile of a pass of a kernel, or None where none was measured.

    Raises:
      RuntimeError: the file is not there, or is not as above. (A ValueError would say that the
        kernel cannot run, and another would be taken.)
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    entries = _read(path).get(device_kind, {}).get(kernel, [])
    name = str(jnp.dtype(dtype))
    fits = [e for e in entries if e["pass"] == which and e["dtype"] == name and e["width"] >= width]
    return min(fits, key=lambda e: e["width"])["tile"] if fits else None


@functools.cache
def _read(path: str) -> Mapping[str, Mapping[str, list]]:
    try:
        table = json.loads(pathlib.Path(path).read_text())
        kernels = [entries for chip in table.values() for entries in chip.values()]
        for entry in itertools.chain.from_iterable(kernels):
            whole = isinstance(entry["width"], int) and entry["width"] > 0
            if not (whole and entry["pass"] in PASSES and isinstance(entry["dtype"], str)):
                raise ValueError(f"{entry} has no pass, dtype and width")
            if not all(isinstance(n, int) for n in entry["tile"].values()):
                raise ValueError(f"{entry} has no tile of whole numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{VARIABLE}: {path!r} is no table of tiles: {error}") from None
    return table


def seconds(
    chip: Chip, shape: tuple[int, int, int], itemsize: int, products: int, rows: int, cols: int
) -> float:
    """Of a pass over (M, N, D) in tiles of rows x cols, by the chip's figures.

    A tile reads its columns' operands anew and does `products` products of 2 rows cols D FLOP, of
    which the longer counts; float32 ones are six of bfloat16. The rows' operands are read once.

        ceil(M / rows) ceil(N / cols) (max(FLOP / flops, cols D bytes / bandwidth) + step)
    """
    m, n, d = shape
    blocks = -(-m // rows) * -(-n // cols)
    each = 6 if itemsize == 4 else 1
    compute = 2 * products * each * rows * cols * d / chip.flops
    read = cols * d * itemsize / chip.bandwidth
    return blocks * (max(compute, read) + chip.step) + m * d * itemsize / chip.bandwidth


def candidates(chip: Chip, itemsize: int) -> Iterator[tuple[int, int]]:
    """Rows and columns to try, multiples of 128, no larger than needed: compilation takes several
    times as long for a tile of 1024 x 1024 as for one of 512 x 512, and a ring holds a dozen
    kernels.

    In bfloat16 a tile of n rows does n FLOP for a byte it reads, so n has to exceed the chip's FLOP
    per byte (v4 224, v5e 241, v5p 166, v6e 560). float32 products are six bfloat16 ones, unrolled:
    past 256 they gain nothing.
    """
    largest = 256
    if itemsize == 2:
        largest = 512 if chip.flops / chip.bandwidth <= 512 else 1024
    some = [n for n in (128, 256, 512, 1024) if n <= largest]
    return itertools.product(some, some)


def fastest(
    chip: Chip,
    shape: tuple[int, int, int],
    itemsize: int,
    products: int,
    needs: Callable[[int, int], int],
) -> tuple[int, int] | None:
    """Rows and columns of the tile with the least `seconds` among those whose bytes of VMEM,
    `needs(rows, cols)`, the chip has; of equal ones the smallest. None: none fits."""
    fits = [
        (seconds(chip, shape, itemsize, products, rows, cols), needs(rows, cols), rows, cols)
        for rows, cols in candidates(chip, itemsize)
        if needs(rows, cols) <= chip.vmem
    ]
    return min(fits)[2:] if fits else None


# --------------------------------------------------------------------------------------------------
# GPUs: a program for each tile

# Of an H100 SXM and an H200 (NVIDIA's Hopper architecture paper): multiprocessors, instructions
# that their lanes start in a second. The cache's bytes per second to all of them follow from plain
# products in tiles of 128 x 256, of which some 640 TFLOP/s are known.
MULTIPROCESSORS = 132
INSTRUCTIONS = MULTIPROCESSORS * 128 * 1.755e9
CACHE = 640e12 / (128 * 256 / (128 + 256))
START = 1e-6  # seconds until a program has its first operands


def program_seconds(
    chip: Chip, shape: tuple[int, int, int], rows: int, cols: int, resident: int, work: int
) -> float:
    """Of a pass over (M, N, D) in bfloat16 by programs of one tile of rows x cols.

    `resident` of them share a multiprocessor, whose units the others use while one waits; `work`:
    instructions for each pair after the product.

        ceil(programs / (multiprocessors resident)) resident t
        t = max(product, operands from the cache, work) + start / resident
        t = max(product, operands from the cache) + work + start                (a single one)
    """
    m, n, d = shape
    programs = -(-m // rows) * -(-n // cols)
    product = 2 * rows * cols * d * MULTIPROCESSORS / chip.flops
    operands = 2 * (rows + cols) * d * MULTIPROCESSORS / CACHE
    rest = work * rows * cols * MULTIPROCESSORS / INSTRUCTIONS
    each = max(product, operands) + rest
    if resident > 1:
        each = max(product, operands, rest)
    waves = -(-programs // (MULTIPROCESSORS * resident))
    return waves * resident * (each + START / resident)
