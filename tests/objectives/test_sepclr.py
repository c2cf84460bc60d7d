"""SepCLR: the released equations in float64, and factors that end where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import compare, same_on_a_mesh, train, unit

from jaxvl.config import ConfigError
from jaxvl.objectives.sepclr import SeparatingContrast

TARGET = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)


def example(b=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"common": 5, "common_2": 5, "salient": 3, "salient_2": 3}
    return {name: rng.normal(size=(b, d)) for name, d in shapes.items()}


def kernel(x, y, tau=0.5):
    return np.exp(-np.square(x[:, None] - y[None]).sum(-1) / (2 * tau))


def released(o, target, salient_weight=1000.0, null_weight=1000.0, entropy_weight=10.0):
    """`train` of the release for CIFAR on MNIST, term by term."""
    common = [unit(o["common"]), unit(o["common_2"])]
    salient = [o["salient"], o["salient_2"]]
    teacher = [np.where(target[:, None], s, 0.0) for s in salient]
    align = lambda x, y: np.square(x - y).sum(1).mean()
    i, j = np.triu_indices(len(target), 1)
    uniform = lambda x: np.log(kernel(x, x)[i, j].mean())  # `pdist`
    joint = lambda c, s: np.log((kernel(c, c) * kernel(s, s)).mean(-1)).mean()
    loss = align(*common) + 2.0 * (uniform(common[0]) + uniform(common[1])) / 2
    own = align(salient[0][target], salient[1][target])
    loss += salient_weight * (own + 2.0 * (uniform(teacher[0]) + uniform(teacher[1])) / 2)
    loss += null_weight * sum(align(s[~target], 0.0) for s in salient) / 2
    return loss + entropy_weight * sum(joint(c, s) for c, s in zip(common, teacher)) / 2


@pytest.mark.parametrize(
    "weights",
    [{}, dict(salient_weight=1.0, null_weight=2.0, entropy_weight=3.0)],
    ids=["release", "small"],
)
def test_released_equations(weights):
    objective = SeparatingContrast(**weights)
    batch = {"target": jnp.asarray(TARGET)}
    compare(objective, example(), batch, lambda o: released(o, TARGET, **weights))


def test_a_class_as_background():
    objective = SeparatingContrast(background=5, null_weight=1.0, salient_weight=1.0)
    batch = {"target": jnp.where(TARGET, jnp.arange(8) % 5, 5)}
    want = lambda o: released(o, TARGET, null_weight=1.0, salient_weight=1.0)
    compare(objective, example(), batch, want)


def test_devices():
    same_on_a_mesh(SeparatingContrast(), example(b=16), {"target": np.tile(TARGET, 2)})


def test_refusals():
    with pytest.raises(ConfigError, match="entropy_weight: -1.0 must be >= 0"):
        SeparatingContrast(entropy_weight=-1.0)
    with pytest.raises(ConfigError, match="salient: .* must be two outputs, one for each view"):
        SeparatingContrast(salient=("salient",))


# Every picture has one of four shapes; a target has one of four colours as well.

SHAPES = COLOURS = 4
WIDTH = 16


def told(x, label, seen):
    """Accuracy of a linear probe, fitted by least squares, on rows that it has not seen."""
    x = np.concatenate([(x - x[seen].mean(0)) / (x[seen].std(0) + 1e-6), np.ones((len(x), 1))], 1)
    weight = np.linalg.lstsq(
        x[seen].T @ x[seen] + np.eye(x.shape[1]), x[seen].T @ label_matrix(label[seen]), rcond=None
    )[0]
    return np.mean((x[~seen] @ weight).argmax(1) == label[~seen])


def label_matrix(label):
    return np.eye(label.max() + 1)[label]


def probes(objective, seed, steps=250):
    """Of targets: shape and colour from the common vector, shape and colour from the salient one."""
    rng = np.random.default_rng(seed)
    n = 256
    shape = rng.integers(SHAPES, size=n)
    colour = rng.integers(COLOURS, size=n)
    target = rng.random(n) < 0.5
    look = np.concatenate(
        [label_matrix(shape), label_matrix(colour) * target[:, None], rng.normal(size=(n, 2))], 1
    )
    mixing = rng.normal(size=(look.shape[1], WIDTH))
    pictures = jnp.asarray(look @ mixing, jnp.float32)
    size = {"common": 4, "salient": 4}
    params = {
        name: [
            jnp.asarray(rng.normal(size=(WIDTH, 32)) / 4, jnp.float32),
            jnp.asarray(rng.normal(size=(32, d)) / 6, jnp.float32),
        ]
        for name, d in size.items()
    }

    def embed(params, x):
        return {name: jnp.tanh(x @ w[0]) @ w[1] for name, w in params.items()}

    def loss(params, key):
        one, two = jax.random.split(key)
        noisy = lambda key: pictures + 0.3 * jax.random.normal(key, pictures.shape)
        second = embed(params, noisy(two))
        outputs = embed(params, noisy(one)) | {f"{name}_2": x for name, x in second.items()}
        return objective(outputs, {"target": jnp.asarray(target)}, {}, None)[0].value

    rows = jax.tree.map(np.asarray, embed(train(loss, params, steps), pictures))
    rows["common"] = unit(rows["common"])
    seen = np.arange(target.sum()) % 2 == 0
    return [
        told(rows[side][target], label[target], seen)
        for side in ("common", "salient")
        for label in (shape, colour)
    ]


@pytest.mark.slow
def test_colour_is_salient_and_shape_is_common():
    options = dict(salient_weight=10.0, null_weight=10.0, entropy_weight=10.0)
    found = np.array([probes(SeparatingContrast(**options), seed) for seed in range(3)])
    print("shape|common colour|common shape|salient colour|salient", found.round(3).tolist())
    shape_common, colour_common, shape_salient, colour_salient = found.T
    assert (shape_common > 0.9).all() and (colour_salient > 0.9).all(), found
    assert (colour_common < 0.5).all() and (shape_salient < 0.5).all(), found  # chance: 0.25
