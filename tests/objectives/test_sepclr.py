"""SepCLR: the released equations in float64, and factors that end where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import call, compare, same_on_a_mesh, trainer, unit

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


def test_a_row_of_no_class_is_neither_target_nor_background():
    rows = np.arange(8) < 7
    objective = SeparatingContrast(background=5)
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example().items()}
    batch = {"target": jnp.where(rows, jnp.where(TARGET, jnp.arange(8) % 5, 5), -1)}
    moved = {n: x.at[7].add(3.0) if n.startswith("salient") else x for n, x in outputs.items()}
    first = call(objective, outputs, batch)
    assert call(objective, moved, batch).value == first.value
    assert first.metrics["targets"] == TARGET[:7].sum() / 8


def test_devices():
    same_on_a_mesh(SeparatingContrast(), example(b=16), {"target": np.tile(TARGET, 2)})


def test_refusals():
    with pytest.raises(ConfigError, match="entropy_weight: -1.0 must be >= 0"):
        SeparatingContrast(entropy_weight=-1.0)
    with pytest.raises(ConfigError, match="salient: .* must be two outputs, one for each view"):
        SeparatingContrast(salient=("salient",))


# Every picture has one of four shapes; a target has one of four colours as well.

SEEN = 128
WIDTH = 16


def one_hot(label):
    return np.eye(label.max() + 1)[label]


def told(x, label, seen):
    """Accuracy of a linear probe, fitted by least squares, on rows that it has not seen."""
    x = (x - x[seen].mean(0)) / (x[seen].std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    gram = x[seen].T @ x[seen] + np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x[seen].T @ one_hot(label[seen]))
    return np.mean((x[~seen] @ weight).argmax(1) == label[~seen])


def embed(params, pictures):
    return {name: jnp.tanh(pictures @ w[0]) @ w[1] for name, w in params.items()}


def learner(objective):
    def loss(params, key, data):
        pictures, target = data
        views = []
        for own in jax.random.split(key):
            noise = 0.3 * jax.random.normal(own, pictures.shape)
            views.append(embed(params, pictures + noise))
        outputs = views[0] | {f"{name}_2": x for name, x in views[1].items()}
        return objective(outputs, {"target": target}, {}, None)[0].value

    return trainer(loss)


def probes(run, seed):
    """Of targets: shape and colour from the common vector, and both from the salient one."""
    rng = np.random.default_rng(seed)
    n = 400
    shape, colour = rng.integers(4, size=(2, n))
    target = rng.random(n) < 0.5
    look = np.concatenate([one_hot(shape), one_hot(colour) * target[:, None]], 1)
    mixing = 2 * np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][: look.shape[1]]
    pictures = jnp.asarray(look @ mixing, jnp.float32)
    params = {
        name: [
            jnp.asarray(rng.normal(size=(WIDTH, 32)) / 4, jnp.float32),
            jnp.asarray(rng.normal(size=(32, 4)) / 6, jnp.float32),
        ]
        for name in ("common", "salient")
    }
    params = run(params, (pictures[:SEEN], jnp.asarray(target[:SEEN])), 600)
    rows = {name: np.asarray(x) for name, x in embed(params, pictures).items()}
    rows["common"] = unit(rows["common"])
    seen = (np.arange(n) < SEEN)[target]
    return [
        told(rows[side][target], label[target], seen)
        for side in ("common", "salient")
        for label in (shape, colour)
    ]


@pytest.mark.slow
def test_colour_is_salient_and_shape_is_common():
    """With the release's weights for ODIR; without the joint entropy colour is in both."""
    weights = dict(salient_weight=1.0, null_weight=100.0)
    run = learner(SeparatingContrast(**weights, entropy_weight=10.0))
    found = np.array([probes(run, seed) for seed in range(3)])
    print("shape|common colour|common shape|salient colour|salient", found.round(3).tolist())
    shape_common, colour_common, shape_salient, colour_salient = found.T
    assert (shape_common > 0.9).all() and (colour_salient > 0.9).all(), found
    # Chance is 0.25; without the joint entropy 0.9 and more.
    assert colour_common.mean() < 0.6 and shape_salient.mean() < 0.5, found
