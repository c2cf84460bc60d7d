"""Class vectors on disk. They depend on weights, tokenizer, names and templates only."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxvl import paths
from jaxvl.aliases import Json, Tree
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import class_vectors
from jaxvl.sharding.hosts import from_process_0

_ODD = 2654435761  # an odd factor, so that two values that change places change the sum


def weights_fingerprint(weights: Tree) -> str:
    """16 hex digits that say which weights these are, whatever mesh they lie on: a checksum of
    their bits.

    Every process must make the call and gets the same answer. Sums of integers modulo 2^32 depend
    on no order.
    """
    with_paths, _ = jax.tree.flatten_with_path(weights)
    sums = np.asarray(_checksums([leaf for _, leaf in with_paths]))
    parts = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {int(n)}"
        for (path, leaf), n in zip(with_paths, sums)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_checksum(leaf) for leaf in leaves]) if leaves else jnp.zeros(0, jnp.uint32)


def _checksum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    elif x.dtype.itemsize in (1, 2, 4):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(
            jnp.uint32
        )
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (place * jnp.uint32(_ODD) + jnp.uint32(1)), dtype=jnp.uint32)


class ClassEmbeddings:
    """Class vectors of one model's weights, computed once and kept in a folder.

    Args:
      encoders: of the model.
      weights: `weights_fingerprint` of its weights.
      folder: where vectors are kept, one file for each class set; None: nowhere.
    """

    def __init__(self, encoders: Encoders, weights: str, folder: paths.Path | None):
        self._encoders = encoders
        self._folder = folder
        tokenizer = hashlib.sha256(_json(encoders.tokenizer.to_json()).encode()).hexdigest()
        self._model = {"weights": weights, "tokenizer": tokenizer, "length": encoders.text_length}

    def __call__(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """float32 [C, D], as `prompts.class_vectors`. Every process must make the call; process 0
        reads and writes."""
        key = {**self._model, "names": list(names), "templates": list(templates)}
        name = f"{hashlib.sha256(_json(key).encode()).hexdigest()[:32]}.npy"
        path = None if self._folder is None else self._folder / name
        first = jax.process_index() == 0
        found = _load(path, len(names)) if first else None
        shape = from_process_0(lambda: None if found is None else list(found.shape))
        if shape is not None:
            return _from_process_0(found, shape)
        vectors = class_vectors(self._encoders.texts, names, templates)
        if first and path is not None:
            out = io.BytesIO()
            np.save(out, vectors, allow_pickle=False)
            paths.make_folder(self._folder)
            paths.write_bytes(path, out.getvalue())
        return vectors


def _from_process_0(found: np.ndarray | None, shape: Sequence[int]) -> np.ndarray:
    if jax.process_count() == 1:
        return found
    rows = found if found is not None else np.zeros(shape, np.float32)
    return np.asarray(multihost_utils.broadcast_one_to_all(rows))


def _load(path: paths.Path | None, classes: int) -> np.ndarray | None:
    """The vectors in a file; None where it is not there or damaged."""
    if path is None or not paths.exists(path):
        return None
    try:
        rows = np.load(io.BytesIO(paths.read_bytes(path)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = rows.ndim == 2 and len(rows) == classes and rows.dtype == np.float32
    return rows if fits else None


def _json(node: Json) -> str:
    return json.dumps(node, sort_keys=True, ensure_ascii=False, default=str)
