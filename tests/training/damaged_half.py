"""As each of two processes, `damaged_half.py FOLDER`: saves two checkpoints of an array of which each
has half, damages the half of process 1 in the newer one, and restores."""

import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvl.sharding import hosts
from jaxvl.training.checkpoint import Checkpoints


def damage(checkpoint: pathlib.Path) -> None:
    chunks = (checkpoint / "state" / "ocdbt.process_1" / "d").iterdir()
    file = max(chunks, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def main(folder: pathlib.Path) -> None:
    halves = NamedSharding(jax.make_mesh((2,), ("fsdp",)), P("fsdp"))
    whole = np.random.default_rng(0).standard_normal(16_384).astype(np.float32)
    state = dict(array=jax.make_array_from_callback(whole.shape, halves, lambda i: whole[i]))
    shape = dict(array=jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=halves))
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        assert checkpoints.save(step, state, dict(config={}))
    checkpoints.finish()
    if jax.process_index() == 0:
        damage(folder / "2")
    multihost_utils.sync_global_devices("damaged")
    restored = checkpoints.restore(lambda frame: shape)
    (half,) = restored.state["array"].addressable_shards
    exactly = np.array_equal(half.data, whole[half.index])
    assert checkpoints.save(3, state, dict(config={}))
    checkpoints.finish()
    how = "exactly" if exactly else "other numbers"
    print(f"restored {restored.step}, {how}; there are {checkpoints.steps}")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
    hosts.initialise(options)
    main(pathlib.Path(words[0]))
