"""Damage that leaves a checkpoint readable: single flipped bits, and how they are noticed."""

import json
import pathlib
import random
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tensorstore
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvl.training import checksums
from jaxvl.training.checkpoint import CheckpointError, Checkpoints

# Orbax leaves the reads of other chunks alone when one has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FRAME = dict(
    config=dict(lr=1e-3, name="align"), positions=dict(pairs=123_456), tokenizer="abc" * 50
)


def make_state(devices: int):
    """Arrays of several types, split and whole."""
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])
    key = jax.random.key(0)

    def place(leaf, *spec):
        return jax.device_put(leaf, NamedSharding(mesh, P(*spec)))

    return dict(
        params={f"layer/{i}": place(jax.random.normal(key, (64, 128)), "fsdp") for i in range(2)},
        moments=place(jax.random.normal(key, (64, 128)).astype(jnp.bfloat16), None, "fsdp"),
        zeros=place(jnp.zeros((64, 128)), "fsdp"),
        step=place(jnp.int32(12)),
        rng=place(jnp.array([1, 2], jnp.uint32)),
        empty={},
    )


def shapes_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def save(folder, state):
    checkpoints = Checkpoints(folder)
    assert checkpoints.save(12, state, FRAME)
    checkpoints.finish()
    checkpoints.close()


def restore(folder, state):
    """The checkpoint on the devices of `state`."""
    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore(lambda frame: shapes_of(state), 12)
    checkpoints.close()
    return restored


def is_same(restored, state) -> bool:
    """Whether every array and the frame are what was saved."""
    pairs = zip(jax.tree.leaves(restored.state), jax.tree.leaves(state), strict=True)
    alike = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    kept = {key: restored.frame[key] for key in FRAME}
    return (
        alike and kept == FRAME and jax.tree.structure(restored.state) == jax.tree.structure(state)
    )


def files_of(checkpoint):
    files = sorted(checkpoint.rglob("*"))
    return [file for file in files if file.is_file() and file.stat().st_size]


def chunks_of(checkpoint):
    """The file that holds most of what process 0 has written of the arrays."""
    files = files_of(checkpoint / "state" / "ocdbt.process_0" / "d")
    return max(files, key=lambda file: file.stat().st_size)


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    """Several bits of every file, most in those that hold the arrays."""
    state = make_state(4)
    save(tmp_path, state)
    assert is_same(restore(tmp_path, state), state)
    draw = random.Random(0)
    refused = 0
    for file in files_of(tmp_path / "12"):
        size = file.stat().st_size
        for _ in range(8 if size > 1500 else 3):
            bit = draw.randrange(8 * size)
            flip(file, bit)
            try:
                assert is_same(restore(tmp_path, state), state), (file, bit)
            except CheckpointError:
                refused += 1
            flip(file, bit)
    assert refused > 10
    assert is_same(restore(tmp_path, state), state)


def test_the_message_names_the_array_and_the_folder(tmp_path):
    state = make_state(4)
    save(tmp_path, state)
    chunks = chunks_of(tmp_path / "12")
    flip(chunks, 4 * chunks.stat().st_size)
    said = r"state: ValueError: DATA_LOSS: Error reading \"(params.layer/.|moments|zeros)/.*12/state/.*"
    with pytest.raises(
        CheckpointError, match=said + "Digest mismatch.*computed digest is [0-9a-fx]+$"
    ):
        restore(tmp_path, state)


def test_the_sum_is_zarrs_own(tmp_path):
    """Whoever knows Zarr 3 can read and check an array, without a line of ours."""
    state = make_state(4)
    save(tmp_path, state)
    base = {"driver": "file", "path": f"{tmp_path / '12' / 'state'}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": "params.layer/0/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    codecs = [codec["name"] for codec in array.spec().to_json()["metadata"]["codecs"]]
    assert codecs == ["bytes", "zstd", "crc32c"]
    np.testing.assert_array_equal(array.read().result(), state["params"]["layer/0"])


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_checkpoint_of_before_is_read_on_any_devices(tmp_path, devices):
    state = make_state(4)
    tiny.save_as_before(tmp_path, 12, state, {**FRAME, "step": 12})
    assert is_same(restore(tmp_path, make_state(devices)), state)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_checksums_hold_on_other_devices(tmp_path, devices):
    state = make_state(4)
    save(tmp_path, state)
    assert is_same(restore(tmp_path, make_state(devices)), state)


def test_another_frame_is_noticed():
    frame = dict(FRAME, step=3, rate=0.1, none=None)
    signed = checksums.signed(frame)
    assert checksums.verified(json.loads(json.dumps(signed))) == frame
    assert checksums.verified(frame) == frame, "one of before has no digest"
    for key, other in (("step", 2), ("rate", 0.10000000000000002), ("none", 0), ("more", 1)):
        with pytest.raises(checksums.Damaged, match="frame/metadata"):
            checksums.verified({**signed, key: other})


def test_damage_that_one_process_meets_is_passed_over_by_both(tmp_path):
    """The other one has read its half, and would wait for it."""
    script = pathlib.Path(__file__).with_name("damaged_half.py")
    said = processes.finish(
        processes.start([str(script), str(tmp_path / "ck")], 2, devices=2, stdout=subprocess.PIPE)
    )
    assert [out.splitlines()[-1] for out, _ in said] == [
        "restored 1, exactly; there are [1, 3]"
    ] * 2
    for (_, log), who in zip(said, (r"process 1 of 2 \(.*\): ", "")):
        assert re.search(rf"checkpoint 2 is damaged \({who}state: ValueError: .*ck/2/state/", log)
    assert [path.name for path in (tmp_path / "ck.damaged").iterdir()] == ["2"]
