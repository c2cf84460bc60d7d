"""Attention on a TPU by JAX's own kernel, splash attention: the logits never leave the chip.

The kernel takes sequences of whole blocks; they are filled up with places that no position sees.
`jax.experimental.pallas.ops.tpu.splash_attention`; the algorithm is that of Dao et al. 2022
(FlashAttention).
"""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128
# Largest blocks of queries and of keys. A sequence of up to that many keys is one block, so that
# its gradients are made in one pass over the logits.
QUERIES = 512
KEYS = 1024


def blocks(length: int, largest: int) -> tuple[int, int]:
    """(number of blocks, size of each) for `length` positions: as few as may be, of whole lanes."""
    number = -(-length // largest)
    return number, -(-length // (number * LANES)) * LANES


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array | None = None,
    *,
    causal: bool = False,
    name: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v on one device.

    Args:
      q: [B, T, H, K]. k, v: [B, N, H, K].
      seen: bool [B, N], the keys that may be seen; what a row without one gives has no meaning.
      causal: position t sees 0 … t only.
      name: of the result and of its log-sum-exp, for policies of `jax.checkpoint`.
      interpret: runs on any backend, slowly.

    Returns:
      [B, T, H, K].
    """
    length = q.shape[1]
    memory = k.shape[1]
    q_blocks, q_block = blocks(length, QUERIES)
    kv_blocks, kv_block = blocks(memory, KEYS)
    rows = q_blocks * q_block
    columns = kv_blocks * kv_block
    # Heads narrower than the lanes of a tile would fill only part of each: their width lies along
    # the sublanes.
    turned = q.shape[3] % LANES > 0
    how = turned, causal, name, interpret
    run = _kernel(q.shape[2], (rows, columns), (q_block, kv_block), *how)
    q = q.astype(jnp.float32) * q.shape[-1] ** -0.5
    q, k, v = (
        jnp.pad(x.astype(k.dtype), ((0, 0), (0, total - x.shape[1]), (0, 0), (0, 0)))
        for x, total in ((q, rows), (k, columns), (v, columns))
    )
    here = jnp.arange(columns) < memory
    if seen is not None:
        seen = jnp.pad(seen, ((0, 0), (0, columns - memory)))
    segments = kernel.SegmentIds(
        jnp.ones(rows, jnp.int32), (here if seen is None else seen).astype(jnp.int32)
    )
    by_row = kernel.SegmentIds(None, None if seen is None else 0)
    y = jax.vmap(run, (0, 0, 0, by_row))(*(x.transpose(0, 2, 1, 3) for x in (q, k, v)), segments)
    return y.transpose(0, 2, 1, 3)[:, :length]


@functools.cache
def _kernel(
    heads: int,
    lengths: tuple[int, int],
    block: tuple[int, int],
    turned: bool,
    causal: bool,
    name: str | None,
    interpret: bool,
) -> kernel.SplashAttentionKernel:
    q_block, kv_block = block
    layout = kernel.QKVLayout.SEQ_MINOR if turned else kernel.QKVLayout.HEAD_DIM_MINOR
    sizes = kernel.BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        use_fused_bwd_kernel=True,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    mask = masks.CausalMask(lengths) if causal else masks.FullMask(lengths)
    make = functools.partial(
        kernel.make_splash_mha,
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
    # It puts what it knows of the mask into arrays. In a thread of its own they are made here: this
    # one is in the middle of tracing, maybe for devices that are not here.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return jax.tree.map(np.asarray, pool.submit(make).result())
