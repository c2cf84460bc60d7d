"""softmax(q k^T / sqrt(K)) v by the implementation that the platform, shapes and mask call for.

    xla      `nn.dense_attention`: the weights [B, H, T, N] pass through main memory
    flash    on a TPU: splash attention (`nn.splash`)
    cudnn    on an NVIDIA GPU: cuDNN's flash attention; bfloat16 or float16
    auto     the kernel of the platform where it can run and there are `LONG` queries and keys or
             more, else xla

`LONG` is a choice by the TPU compiler's figures, not by measured times: bytes through main memory
(`jaxvl.hlo.traffic`) of an attention with its four maps, forward and backward, of 32 rows in
bfloat16, xla -> flash:

    tokens, heads x K    196, 12 x 64    256, 16 x 64    577, 16 x 64    729, 16 x 72
    v5e, GiB             0.32 -> 0.16    0.99 -> 0.48    6.50 -> 2.71    9.87 -> 3.53
    v6e, GiB             0.47 -> 0.28    1.15 -> 0.59    6.65 -> 2.88    10.0 -> 3.66

A step of SigLIP So400m/14 at 384 pixels, 128 rows a v6e, full recomputation (`jaxvl.plan --quick`):
2,296 -> 1,183 GiB through a device's memory, temporaries 25.3 -> 19.8 GiB, 1,370 -> 1,404 TFLOP.

Below it the kernel also moves less, but does more: sequences are filled up to whole blocks, 196 to
256, the logits are computed twice, and its grid has a step for every row and head.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo  # nothing public says whether cuDNN is here
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec

from jaxvl.config import check
from jaxvl.kernels.device import device
from jaxvl.nn.dense_attention import dense_attention
from jaxvl.nn.moe.dispatch import group_axis
from jaxvl.nn.splash import splash
from jaxvl.nn.stack import ATTENTION_OUTPUT
from jaxvl.sharding.rules import auto_mesh, names_of, spec

Implementation = Literal["auto", "xla", "flash", "cudnn"]
LONG = 512
_KERNELS = {"tpu": "flash", "gpu": "cudnn"}


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    implementation: Implementation = "auto",
    grouped: bool = False,
) -> jax.Array:
    """Attends. The result is named `ATTENTION_OUTPUT` for policies of `jax.checkpoint`.

    Args:
      q: [B, T, H, K]. k, v: [B, N, H, K].
      mask: bool, broadcastable to [B, H, T, N], True where a key may be seen. What a row gives that
        sees no key has no meaning.
      causal: position t sees 0 … t only; together with `mask`, both must allow.
      grouped: rows lie on the mesh as the rows of a stack that has experts.

    Returns:
      [B, T, H, K].

    Raises:
      ConfigError: at `attention`; a named implementation cannot run.
    """
    chosen = implementation
    if implementation == "auto":
        chosen = _best(q, k, mask, grouped)
    elif implementation in _REASONS:
        problem = _REASONS[implementation](q, k, mask)
        check(not problem, "attention", f"{implementation!r} {problem}; 'auto' takes what can run")
    if chosen == "flash":
        return _flash(q, k, v, mask, causal, grouped)
    if chosen == "cudnn":
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=chosen
        )
    else:
        y = dense_attention(q, k, v, mask, causal)
    return checkpoint_name(y, ATTENTION_OUTPUT)


def _best(q: jax.Array, k: jax.Array, mask: jax.Array | None, grouped: bool) -> str:
    platform, _ = device()
    kernel = _KERNELS.get(platform)
    if kernel is None or min(q.shape[1], k.shape[1]) < LONG or _REASONS[kernel](q, k, mask):
        return "xla"
    mesh = auto_mesh()
    if mesh is None:
        return kernel
    # Devices of an axis that divides neither rows nor heads would all compute the same, and add up
    # their gradients.
    divides = _axes(_layout(q, mesh, grouped))
    return kernel if all(n == 1 or a in divides for a, n in mesh.shape.items()) else "xla"


def _layout(q: jax.Array, mesh: AbstractMesh, grouped: bool) -> PartitionSpec:
    """Of q, k and v. Axes of one device are named too: over others the gradients would be added
    up."""
    rows = group_axis(len(q)) if grouped else "batch"
    parts = spec((rows, None, "heads", "kv"), shape=q.shape, mesh=mesh)
    alone = {a for a, n in mesh.shape.items() if n == 1} - _axes(parts).keys()
    first = (*names_of(parts[0]), *sorted(alone))
    return PartitionSpec(first or None, *parts[1:])


def _axes(parts: PartitionSpec) -> dict[str, None]:
    """The mesh axes that are named, in order."""
    return dict.fromkeys(name for part in parts for name in names_of(part))


def _no_flash(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> str:
    platform, _ = device()
    if platform != "tpu":
        return f"needs a TPU; this is a {platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 and float32, not {q.dtype}"
    return _no_keys(mask)


def _no_keys(mask: jax.Array | None) -> str:
    by_key = mask is None or mask.shape[1:3] == (1, 1)
    return "" if by_key else "takes masks of keys only; this one differs by position"


def _no_cudnn(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> str:
    """What cuDNN asks for: `jax._src.cudnn.fused_attention_stablehlo.check_is_flash_attention`."""
    platform, _ = device()
    length = q.shape[1]
    memory = k.shape[1]
    width = q.shape[-1]
    if platform != "gpu":
        return f"needs an NVIDIA GPU; this is a {platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 and float16, not {q.dtype}"
    if width % 8 or width > 128:
        return f"takes heads of a multiple of 8 up to 128 wide, not {width}"
    if mask is not None and (length % 2 or memory % 2):
        return f"takes a mask with even lengths only, not {length} and {memory}"
    return _no_library()


def _no_library() -> str:
    try:
        fused_attention_stablehlo.check_cudnn_version()
    except RuntimeError:
        return "needs cuDNN, which is not installed"
    return ""


_REASONS = {"flash": _no_flash, "cudnn": _no_cudnn}


def _flash(q, k, v, mask, causal: bool, grouped: bool) -> jax.Array:
    """Each device attends with its own rows and heads: the compiler cannot divide a kernel, and
    would gather q, k and v for it."""

    def own(q, k, v, *seen):
        return splash(q, k, v, *seen, causal=causal, name=ATTENTION_OUTPUT)

    seen = [] if mask is None else [jnp.broadcast_to(mask[:, 0, 0], (len(k), k.shape[1]))]
    mesh = auto_mesh()
    if mesh is None:
        return own(q, k, v, *seen)
    parts = _layout(q, mesh, grouped)
    keys = PartitionSpec(parts[0], None)
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(parts, parts, parts, *(keys for _ in seen)),
        out_specs=parts,
        check_vma=False,  # a kernel does not say over which axes its results vary
    )(q, k, v, *seen)
