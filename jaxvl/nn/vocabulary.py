"""The map from features to words, and what a cross-entropy needs of it without all its logits at
once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.nn.linear import Embedding, Linear, normal
from jaxvl.nn.stack import rematerialise
from jaxvl.sharding.copies import copies
from jaxvl.sharding.mesh import batch_shards
from jaxvl.sharding.rules import auto_mesh, constrain

CHUNK = 2**26  # logits at a time on each device: 256 MiB in float32


class VocabularyHead(nnx.Module):
    """`logits[..., v] = x . w_v (+ bias_v)`.

    Args:
      width, vocab_size: D and V.
      tied: the embedding whose rows are the w_v, or None for weights of its own.
      chunk: logits that exist at a time on a device in `scores`.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        *,
        tied: bool,
        rngs: nnx.Rngs,
        chunk: int = CHUNK,
        dtype: DTypeLike = jnp.float32,
    ):
        self.out = (
            None
            if tied
            else Linear(
                width,
                vocab_size,
                axes=("embed", "vocab"),
                bias=False,
                init=normal(width**-0.5),
                rngs=rngs,
                dtype=dtype,
            )
        )
        if self.out is not None:
            self.out.adaptable = False  # `kernel` reads it
        self.vocab_size = vocab_size
        self.chunk = chunk
        self.dtype = dtype

    def kernel(self, words: Embedding) -> jax.Array:
        """[D, V] in the compute dtype."""
        return (words.embedding[...].T if self.out is None else self.out.kernel[...]).astype(
            self.dtype
        )

    def logits(self, x: jax.Array, words: Embedding) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        return jnp.matmul(
            x.astype(self.dtype), self.kernel(words), preferred_element_type=jnp.float32
        )

    def scores(self, x: jax.Array, words: Embedding, targets: jax.Array) -> dict[str, jax.Array]:
        """What a cross-entropy, smoothed or not, needs of the logits of x [B, T, D] beside targets
        int [B, T].

        Position by position of T, as many at a time as `chunk` allows; the backward pass computes
        their logits again, so that no [B, T, V] array is ever held. The kernel is gathered, and
        its gradient summed, once (`copies`), not for every chunk.

        Returns:
          lse: log sum_v exp(logits_v); target: logits of the target; mean: mean_v logits_v (each
            float32 [B, T]); correct: whether
          no logit is above the target's, bool [B, T].
        """
        b, t = targets.shape
        mesh = auto_mesh()
        shards = 1 if mesh is None else batch_shards(mesh)
        rounds = next(
            n
            for n in range(1, t + 1)
            if t % n == 0 and (b * (t // n) * self.vocab_size <= self.chunk * shards or n == t)
        )
        kernels = copies(self.kernel(words), ("embed", "vocab"), b)
        n = len(kernels)

        def part(x, targets):
            logits = jnp.einsum(
                "sbtd,sdv->sbtv", x.astype(self.dtype), kernels, preferred_element_type=jnp.float32
            )
            target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            lse = jax.nn.logsumexp(logits, -1)
            return dict(
                lse=lse,
                target=target,
                mean=logits.mean(-1),
                correct=jax.lax.stop_gradient(target >= logits.max(-1)),
            )

        part = rematerialise(part, "full", scanned=False)

        def cut(a):
            """[B, T, ...] -> [rounds, n, B / n, T / rounds, ...]."""
            a = a.reshape(n, b // n, rounds, t // rounds, *a.shape[2:])
            a = constrain(a, "batch", *[None] * (a.ndim - 1))
            return jnp.moveaxis(a, 2, 0)

        if rounds == 1:
            parts = {k: a[None] for k, a in part(cut(x)[0], cut(targets)[0]).items()}
        else:
            parts = jax.lax.map(lambda args: part(*args), (cut(x), cut(targets)))
        return {k: jnp.moveaxis(a, 0, 2).reshape(b, t) for k, a in parts.items()}
