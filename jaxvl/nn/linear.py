"""Linear maps and embeddings whose parameters name their logical axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.quantized import Quantize, project_quantized
from jaxvl.sharding import constrain, gathered
from jaxvl.sharding.copies import scattered

Initializer = Callable[..., jax.Array]

xavier = jax.nn.initializers.xavier_uniform()
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones
normal = jax.nn.initializers.normal

# A vector along the width is too small to be worth sharding; along heads, mlp or vocabulary it
# follows its matrix.
_VECTOR_AXES = {"embed": "norm", "conv_out": "norm", "conv_in": "norm"}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, kernel: jax.Array, axes: Sequence[str] | None = None) -> jax.Array:
    """x [..., in], kernel [in, out] (either of several dimensions) -> [..., out], of x's dtype.

    A kernel with logical `axes` that is sharded over the batch's mesh axes is gathered here in the
    dtype of x and, once more, in the backward pass, which keeps its part alone; its gradient is
    split as it is. The backward pass keeps the kernel as it is given: of a scan's layers it is
    there already, and its copy in another dtype would be one of all layers.

    On a CPU the gradient of the kernel is one product `x^T dy` of all rows. JAX's own rule writes
    `(dy^T x)^T`: XLA's CPU compiler copies a transposed x for it, and computes anew what x is a sum
    of. Reverse mode only, as every `jax.custom_vjp`.
    """
    return x @ _matrix(x, kernel, axes)


def _matrix(x: jax.Array, kernel: jax.Array, axes: Sequence[str] | None) -> jax.Array:
    kernel = kernel.astype(x.dtype)
    kernel = kernel if axes is None else gathered(kernel, axes)
    return kernel.reshape(x.shape[-1], -1)


def _project_forward(x, kernel, axes):
    return x @ _matrix(x, kernel, axes), (x, kernel)


def _project_backward(axes, saved, dy):
    x, kernel = saved
    matrix = _matrix(x, kernel, axes)
    dx = jax.lax.dot_general(dy, matrix, (((dy.ndim - 1,), (1,)), ((), ())))
    if axes is None:
        dkernel = _rows_product(x, dy).reshape(kernel.shape)
    else:
        dkernel = scattered(_rows_product, x, dy, axes, kernel.shape)
    return dx, dkernel.astype(kernel.dtype)


def _rows_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """x [..., in], dy [..., out] -> the sum over all rows, [in, out]."""
    return jax.lax.platform_dependent(x, dy, cpu=_of_flat_rows, default=_of_rows)


def _of_rows(x: jax.Array, dy: jax.Array) -> jax.Array:
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


def _of_flat_rows(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The same of a matrix of rows, which on a TPU would be a copy where T is no multiple of 8."""
    return _of_rows(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))


project.defvjp(_project_forward, _project_backward)


def vector_axis(axis: str) -> str:
    """Logical axis of a bias or scale along `axis`."""
    return _VECTOR_AXES.get(axis, axis)


class Linear(nnx.Module):
    """`y[..., out] = x[..., in] · kernel[in, out] + bias[out]`, where `in` and `out` may be several
    dimensions.

    Args:
      inputs, outputs: sizes contracted and produced: an int, or several, as in `(H, K)`.
      axes: logical names of the dimensions of `inputs` followed by those of `outputs`.
      init: called with the shape `[prod(inputs), prod(outputs)]`, so that fans are those of the
        map.
      dtype: of the computation and the result.
      quantize: `int8` or `fp8` products, see `nn.quantized`; None: of `dtype`.

    Attributes:
      adapter: label -> module that is called with x and y and gives y anew; None without.
      adaptable: False where the kernel is read without a call, so that an adapter would be passed
        by.
    """

    adapter: nnx.Dict | None = None
    adaptable: bool = True

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int | Sequence[int],
        *,
        axes: Sequence[str],
        rngs: nnx.Rngs,
        bias: bool = True,
        init: Initializer = xavier,
        dtype: DTypeLike = jnp.float32,
        quantize: Quantize | None = None,
    ):
        inputs, outputs = (tuple(s) if isinstance(s, Sequence) else (s,) for s in (inputs, outputs))
        if len(axes) != len(inputs) + len(outputs):
            raise ValueError(
                f"axes: {tuple(axes)} must name each dimension of {inputs} -> {outputs}"
            )
        self.inputs = inputs
        self.outputs = outputs
        self.axes = tuple(axes)
        self.dtype = dtype
        self.quantize = quantize
        kernel = init(rngs.params(), (math.prod(inputs), math.prod(outputs)), jnp.float32)
        self.kernel = nnx.Param(kernel.reshape(*inputs, *outputs), axes=tuple(axes))
        vector = tuple(vector_axis(a) for a in axes[len(inputs) :])
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32), axes=vector) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        lead = x.shape[: x.ndim - len(self.inputs)]
        x_rows = x.astype(self.dtype).reshape(*lead, -1)
        kernel = self.kernel[...]
        if self.quantize is None:
            y = project(x_rows, kernel, self.axes)
        else:
            matrix = gathered(kernel.astype(self.dtype), self.axes).reshape(x_rows.shape[-1], -1)
            y = project_quantized(x_rows, matrix, self.quantize)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype).reshape(-1)
        y = y.reshape(*lead, *self.outputs)
        if self.adapter is not None:
            for adapter in self.adapter.values():
                y = adapter(x, y)
        return y


class Embedding(nnx.Module):
    """Rows of a table: `y[..., :] = embedding[ids[...], :]`.

    Args:
      rows, width: shape of the table.
      axes: its logical names; `("vocab", "embed")` for words, `("length", "embed")` for positions.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        axes: tuple[str, str] = ("vocab", "embed"),
        init: Initializer = normal(0.02),
        dtype: DTypeLike = jnp.float32,
    ):
        self.embedding = nnx.Param(init(rngs.params(), (rows, width), jnp.float32), axes=axes)
        self.rows = axes[0]
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        # Whole rows: of a width that is split over the axes that split the batch, the compiler
        # would gather the looked-up rows of all devices.
        table = constrain(self.embedding[...], self.rows, None)
        return jnp.take(table, ids, axis=0).astype(self.dtype)
