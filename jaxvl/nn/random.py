"""Dropout and drop-path, with explicit keys."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

_ADAPTER_KEY = contextvars.ContextVar("adapter_key", default=None)


@contextlib.contextmanager
def adapters_draw_from(key: jax.Array | None) -> Iterator[None]:
    """Adapters that are traced inside draw from `key`; None: they drop nothing.

    The modules that they sit on are called without a key.
    """
    token = _ADAPTER_KEY.set(key)
    try:
        yield
    finally:
        _ADAPTER_KEY.reset(token)


def adapter_key(number: int) -> jax.Array | None:
    """The key of the adapter with this number; None where nothing is dropped."""
    key = _ADAPTER_KEY.get()
    # fold_in(key, i) is split(key, n)[i], and the layer splits this key for itself.
    return None if key is None else jax.random.fold_in(key, 2**31 + number)


def split(key: jax.Array | None, n: int) -> list[jax.Array | None]:
    """`n` keys, or `n` times None."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def need_key(key: jax.Array | None, what: str) -> jax.Array:
    """The key. Raises ValueError where `what` needs one and there is none."""
    if key is None:
        raise ValueError(f"key: None, but {what} is random in training; pass a jax.random.key")
    return key


def dropout(x: jax.Array, rate: float, key: jax.Array | None, *, train: bool) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate). Identity if
    not `train`.

    Raises:
      ValueError: no key where one is needed.
    """
    if not train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(need_key(key, "dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(
    x: jax.Array, rate: float | jax.Array, key: jax.Array | None, *, train: bool
) -> jax.Array:
    """Zeroes whole rows of the batch (Huang et al. 2016; drop-connect of EfficientNet), scaling the
    others.

    Args:
      x: [B, ...], the branch of a residual connection.
      rate: probability; may be traced (one per layer under scan).

    Raises:
      ValueError: no key where one is needed.
    """
    if not train or (isinstance(rate, (int, float)) and rate == 0.0):
        return x
    keep = jax.random.bernoulli(
        need_key(key, "drop-path"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1)
    )
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0).astype(x.dtype)
