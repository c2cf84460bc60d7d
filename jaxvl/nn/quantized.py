"""Products of linear maps in int8 or float8, while weights and activations stay as they are.

The forward product and the gradient of the input are products of 8 bits; the gradient of the
kernel, a sum over all rows of a batch in which small terms would be lost, is one of the layer's
dtype. It is the scheme of SwitchBack (Wortsman et al. 2023, arXiv 2304.13013), found for CLIP; here
each row of the input and each column of the kernel has its own scale, the largest absolute value.
The quantisation and its derivative are qwix's (`pip install "jaxvl[quant]"`).
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import jax
import jax.numpy as jnp

from jaxvl.config import check

Quantize = Literal["int8", "fp8"]


def check_quantize(quantize: Quantize | None) -> None:
    """Raises ConfigError where it is asked for and qwix is not installed."""
    installed = quantize is None or importlib.util.find_spec("qwix") is not None
    problem = f"{quantize!r} needs qwix, which is not installed: pip install 'jaxvl[quant]'"
    check(installed, "quantize", problem)


def project_quantized(x: jax.Array, kernel: jax.Array, quantize: Quantize) -> jax.Array:
    """`y[..., out] = x[..., in] · kernel[in, out]` of 8 bits, in the dtype of x. Reverse mode
    only."""
    # qwix's public functions quantise either for inference or by intercepting the calls of a
    # module, which does not reach into a `jax.custom_vjp`.
    from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt

    # fp8: more digits for values, more range for gradients (Micikevicius et al. 2022).
    values, gradients = {
        "int8": (jnp.int8, jnp.int8),
        "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
    }[quantize]
    config = DotGeneralQtConfig(
        lhs_qtype=values,
        rhs_qtype=values,
        dlhs_grad_qtype=gradients,
        dlhs_residual_qtype=values,
        use_original_residuals=True,  # of which the gradient of the kernel is made
    )
    return dot_general_qt(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), config)
