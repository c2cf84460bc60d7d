"""Where each of our arrays lies in another library's state dict, read in both directions.

A table is `{our path: Source}`. `read_arrays` takes a state dict to our arrays, `write_arrays`
takes them back; no table has code of its own for either. Nothing here imports another library:
tensors are NumPy arrays.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

StateDict = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]


class ConversionError(ValueError):
    """Weights, a configuration or a tokenizer that cannot be taken over, with what would be
    valid."""


@dataclasses.dataclass(frozen=True)
class Form:
    """A change of layout with its inverse.

    Attributes:
      read: from their array to ours, of one layer.
      write: from ours to theirs.
    """

    read: Transform
    write: Transform


SAME = Form(lambda x: x, lambda x: x)
TRANSPOSED = Form(np.transpose, np.transpose)
CONVOLUTION = Form(
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)  # torch's [O, I, H, W]; ours [H, W, I, O]
ONE = Form(
    SAME.read, lambda x: x.reshape(1)
)  # a number that is written as [1]; read as [] or [1], as all numbers are
LEADING = Form(lambda x: x[0], lambda x: x[None])  # theirs has an axis of 1 in front
POINTWISE = Form(
    lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
)  # a 1 x 1 convolution that is a linear map here


def heads_out(heads: int) -> Form:
    """Query, key or value: torch's [H K, D], ours [D, H, K]."""
    return Form(lambda x: x.T.reshape(x.shape[1], heads, -1), lambda x: x.reshape(x.shape[0], -1).T)


def heads_in(heads: int) -> Form:
    """Output of attention: torch's [D, H K], ours [H, K, D]."""
    return Form(
        lambda x: x.T.reshape(heads, -1, x.shape[0]), lambda x: x.reshape(-1, x.shape[-1]).T
    )


def heads_bias(heads: int) -> Form:
    """Bias of a query, key or value: torch's [H K], ours [H, K]."""
    return Form(lambda x: x.reshape(heads, -1), lambda x: x.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our arrays comes from.

    Attributes:
      name: their tensor; with `{i}` in it, one per layer, stacked along our first axis.
      form: their layout to ours and back, of one layer.
      layers: number of layers of a stacked array; 0: not stacked.
      part: (i, n): our array is the i-th of n equal parts of their tensor along its first axis
        (queries, keys and values in one matrix); None: the whole. The other parts belong to other
        entries of the table.
    """

    name: str
    form: Form = SAME
    layers: int = 0
    part: tuple[int, int] | None = None

    def names(self) -> list[str]:
        return [self.name.format(i=i) for i in range(self.layers)] if self.layers else [self.name]

    def read(self, state: StateDict) -> np.ndarray:
        """Ours from theirs. Raises KeyError where the state dict lacks the tensor, ValueError for
        an impossible shape."""
        arrays = [self.form.read(self._part(np.asarray(state[name]))) for name in self.names()]
        return np.stack(arrays) if self.layers else arrays[0]

    def write(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(their name, their array or the part of it) from ours."""
        for i, name in enumerate(self.names()):
            yield name, self.form.write(array[i] if self.layers else array)

    def _part(self, x: np.ndarray) -> np.ndarray:
        if self.part is None:
            return x
        i, n = self.part
        if len(x) % n:
            raise ValueError(f"{len(x)} rows do not divide into {n} parts")
        return x[i * len(x) // n : (i + 1) * len(x) // n]


Table = Mapping[str, Source]
Entries = Iterator[tuple[str, Source]]


def read_arrays(
    table: Table, state: StateDict, shapes: Mapping[str, Sequence[int]], spare: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Our arrays from their state dict.

    Args:
      table: our path -> `Source`.
      state: their name -> array; read lazily, one tensor at a time.
      shapes: our path -> shape that the model has there; the same paths as the table's.
      spare: patterns (`fnmatch`) of their tensors that hold nothing of the model's (buffers, an
        unused pooler).

    Returns:
      Path -> float32 array.

    Raises:
      ConversionError: tensors that the model needs and the state dict lacks, or that it has and the
        model has no use for; one of another shape than the model's.
    """
    if set(table) != set(shapes):
        raise ConversionError(
            f"the table and the model differ in {sorted(set(table) ^ set(shapes))}"
        )
    wanted = {name for source in table.values() for name in source.names()}
    missing = wanted - set(state)
    unused = {
        name
        for name in set(state) - wanted
        if not any(fnmatch.fnmatch(name, pattern) for pattern in spare)
    }
    if missing or unused:
        raise ConversionError(
            f"tensors missing: {_some(missing)}; without a place in the model: {_some(unused)}"
        )
    return {path: _read(path, source, state, tuple(shapes[path])) for path, source in table.items()}


def _read(path: str, source: Source, state: StateDict, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = source.read(state)
    except (ValueError, IndexError) as error:
        raise ConversionError(
            f"tensor {source.names()[0]}: does not fit {path} {list(shape)} ({error})"
        ) from None
    if shape == () and array.size == 1:
        array = array.reshape(())  # some training programs keep a number, such as the scale, as [1]
    if array.shape != shape:
        theirs = list(np.shape(state[source.names()[0]]))
        raise ConversionError(
            f"tensor {source.names()[0]} {theirs} reads as {list(array.shape)}; {path} must "
            f"be {list(shape)}"
        )
    return np.asarray(array, np.float32, order="C")  # ascontiguousarray would give a scalar an axis


def write_arrays(table: Table, arrays: StateDict) -> dict[str, np.ndarray]:
    """Their state dict, float32, from our arrays: the inverse of `read_arrays`.

    Raises:
      ConversionError: the table and `arrays` have not the same paths.
    """
    if set(table) != set(arrays):
        raise ConversionError(
            f"the table and the model differ in {sorted(set(table) ^ set(arrays))}"
        )
    state: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, source in table.items():
        for name, array in source.write(np.asarray(arrays[path], np.float32)):
            if source.part is None:
                state[name] = array
            else:
                parts.setdefault(name, {})[source.part[0]] = array
    state |= {
        name: np.concatenate([pieces[i] for i in sorted(pieces)]) for name, pieces in parts.items()
    }
    return {
        name: np.asarray(array, order="C") for name, array in state.items()
    }  # files are written as memory lies


def _some(names: set[str], most: int = 6) -> str:
    shown = ", ".join(sorted(names)[:most])
    return f"{shown or 'none'}" + (f" and {len(names) - most} more" if len(names) > most else "")


# --------------------------------------------------------------------------------------------------
# Pieces that the tables of all libraries built on torch share


def linear(
    ours: str, theirs: str, layers: int = 0, bias: bool = True, part: tuple[int, int] | None = None
) -> Entries:
    """torch's `Linear`, or a part of its outputs."""
    yield f"{ours}/kernel", Source(f"{theirs}.weight", TRANSPOSED, layers, part)
    if bias:
        yield f"{ours}/bias", Source(f"{theirs}.bias", SAME, layers, part)


def norm(ours: str, theirs: str, layers: int = 0) -> Entries:
    """torch's `LayerNorm` or the affine part of a batch norm."""
    yield f"{ours}/scale", Source(f"{theirs}.weight", layers=layers)
    yield f"{ours}/bias", Source(f"{theirs}.bias", layers=layers)


def attention(ours: str, theirs: Mapping[str, str], heads: int, layers: int = 0) -> Entries:
    """Attention of four `Linear`s; `theirs`: the names of `query`, `key`, `value`, `out`."""
    for name in ("query", "key", "value"):
        yield f"{ours}/{name}/kernel", Source(f"{theirs[name]}.weight", heads_out(heads), layers)
        yield f"{ours}/{name}/bias", Source(f"{theirs[name]}.bias", heads_bias(heads), layers)
    yield f"{ours}/out/kernel", Source(f"{theirs['out']}.weight", heads_in(heads), layers)
    yield f"{ours}/out/bias", Source(f"{theirs['out']}.bias", layers=layers)


def multihead_attention(ours: str, theirs: str, heads: int, layers: int = 0) -> Entries:
    """torch's `MultiheadAttention`, which keeps query, key and value as thirds of one matrix."""
    for i, name in enumerate(("query", "key", "value")):
        yield (
            f"{ours}/{name}/kernel",
            Source(f"{theirs}.in_proj_weight", heads_out(heads), layers, (i, 3)),
        )
        yield (
            f"{ours}/{name}/bias",
            Source(f"{theirs}.in_proj_bias", heads_bias(heads), layers, (i, 3)),
        )
    yield f"{ours}/out/kernel", Source(f"{theirs}.out_proj.weight", heads_in(heads), layers)
    yield f"{ours}/out/bias", Source(f"{theirs}.out_proj.bias", layers=layers)
