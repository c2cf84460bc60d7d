"""Checksums of weights, and class vectors that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import encoders, unit

from jaxvl.evals.class_embeddings import ClassEmbeddings, weights_fingerprint
from jaxvl.evals.prompts import class_vectors
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
WEIGHTS = {
    "a": np.arange(24, dtype=np.float32).reshape(8, 3),
    "b": np.array([1, -2], np.int32),
    "c": np.float32(0.5),
    "d": np.ones(3, bool),
}


def changed(key, change):
    return {**WEIGHTS, key: change(WEIGHTS[key])}


def test_a_fingerprint_does_not_depend_on_the_mesh():
    spread = jax.device_put(
        jnp.asarray(WEIGHTS["a"]),
        jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec("data")),
    )
    plain = weights_fingerprint(jax.tree.map(jnp.asarray, WEIGHTS))
    assert (
        plain == weights_fingerprint({**jax.tree.map(jnp.asarray, WEIGHTS), "a": spread})
        and len(plain) == 16
    )


@pytest.mark.parametrize(
    "other",
    [
        changed("a", lambda x: x + np.eye(8, 3, dtype=np.float32) * 1e-6),
        changed("a", lambda x: x[::-1].copy()),
        changed("a", lambda x: np.nextafter(x, np.float32(9e9))),
        changed("a", lambda x: x.reshape(3, 8)),
        changed("b", lambda x: -x),
        changed("c", lambda x: -x),
        changed("d", lambda x: ~x),
        {**WEIGHTS, "e": WEIGHTS["c"]},
        {("z" if key == "a" else key): value for key, value in WEIGHTS.items()},
        changed("a", lambda x: np.where(x == 0, np.float32(-0.0), x)),
        changed("a", lambda x: jnp.asarray(x, jnp.bfloat16)),
    ],
)
def test_a_fingerprint_sees_every_change(other):
    assert weights_fingerprint(jax.tree.map(jnp.asarray, other)) != weights_fingerprint(
        jax.tree.map(jnp.asarray, WEIGHTS)
    )


class Counted:
    """Encoders that count the texts which they are given."""

    def __init__(self, inner):
        self._inner = inner
        self.asked = 0
        self.tokenizer = inner.tokenizer
        self.text_length = inner.text_length

    def texts(self, texts):
        self.asked += len(texts)
        return self._inner.texts(texts)


NAMES = [f"word {k}" for k in range(9)]
TEMPLATES = ("a {}", "{} or {}")


def test_vectors_are_computed_once(tmp_path):
    model = Counted(encoders(MESH, unit(64, 8), unit(64, 8, seed=1)))
    expected = class_vectors(model.texts, NAMES, TEMPLATES)
    model.asked = 0
    for _ in range(2):
        np.testing.assert_array_equal(
            ClassEmbeddings(model, "w", tmp_path / "kept")(NAMES, TEMPLATES), expected
        )
    assert model.asked == 18
    ClassEmbeddings(model, "w", None)(NAMES, TEMPLATES)
    assert model.asked == 36


@pytest.mark.parametrize(
    "weights, names, templates",
    [
        ("other", NAMES, TEMPLATES),
        ("w", NAMES[::-1], TEMPLATES),
        ("w", NAMES[:3], TEMPLATES),
        ("w", NAMES, TEMPLATES[:1]),
        ("w", NAMES, ("a {}", "{}")),
    ],
)
def test_what_vectors_depend_on(tmp_path, weights, names, templates):
    model = Counted(encoders(ONE, unit(64, 8), unit(64, 8, seed=1)))
    ClassEmbeddings(model, "w", tmp_path)(NAMES, TEMPLATES)
    model.asked = 0
    got = ClassEmbeddings(model, weights, tmp_path)(names, templates)
    assert model.asked == len(names) * len(templates) and len(got) == len(names)


def test_another_tokenizer_is_another_file(tmp_path):
    model = Counted(encoders(ONE, unit(64, 8), unit(64, 8, seed=1)))
    ClassEmbeddings(model, "w", tmp_path)(NAMES, TEMPLATES)
    model.tokenizer = type("Other", (), {"to_json": lambda self: "another vocabulary"})()
    ClassEmbeddings(model, "w", tmp_path)(NAMES, TEMPLATES)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", lambda content: content[:-5]])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    model = Counted(encoders(ONE, unit(64, 8), unit(64, 8, seed=1)))
    expected = ClassEmbeddings(model, "w", tmp_path)(NAMES, TEMPLATES)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()) if callable(damage) else damage)
    np.testing.assert_array_equal(ClassEmbeddings(model, "w", tmp_path)(NAMES, TEMPLATES), expected)
    np.testing.assert_array_equal(np.load(path), expected)
