"""CAPro against the equations of the paper and its release, in float64, row by row."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import context, embeddings, log_softmax, low, slopes

from jaxvl.config import ConfigError
from jaxvl.objectives import StateSpec
from jaxvl.objectives.capro import Capro, clean
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh

B, C, D, Q = 8, 4, 3, 20
OPTIONS = dict(head="shape", projected="z", label="shape", queue=Q, decay=0.8, warmup=0.5)
OBJECTIVE = Capro(**OPTIONS, bootstrap=0.3)


def steps(count, seed=0):
    """(outputs, batch, progress) of some steps, float64; the last class comes late and no seed is
    of it."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        z, key = embeddings((B, D), (B, D), seed=seed + 10 * i)
        logits, theirs = rng.normal(size=(2, B, C)) * 2
        label = rng.integers(-1, C if i > 2 else C - 1, B)
        seed_rows = (rng.random(B) < 0.5) & (label < C - 1)
        batch = {"shape": label, "seed": seed_rows.astype(int)}
        batch |= {"momentum/z": key, "momentum/logits/shape": theirs}
        found.append(({"z": z, "logits/shape": logits}, batch, i / count))
    return found


def softmax(x):
    return np.exp(log_softmax(x, -1))


class Release:
    """`forward_webvision` and the losses of `train_webvision`, with the paper's weights of the
    queue and, of each of its rows, the classifier's answer of when it came."""

    def __init__(self, o):
        self.o = o
        self.prototypes = np.zeros((C, D))
        self.visited = np.zeros(C, int)
        self.queue = []  # (row, classifier's answer)
        self.at = 0

    def near(self, rows):
        """z . c / tau of classes that have a prototype, -inf of others."""
        lengths = np.linalg.norm(self.prototypes, axis=1, keepdims=True)
        scores = rows @ (self.prototypes / np.maximum(lengths, 1e-12)).T / self.o.temperature
        there = self.visited > 0
        return np.where(there | ~there.any(), scores, -1e9)

    def rate(self, p, rows):
        return self.o.alpha * p + (1 - self.o.alpha) * softmax(self.near(rows))

    def labels(self, outputs, batch, progress):
        """(label, whether it counts) of every row."""
        given = batch["shape"]
        if progress < self.o.warmup:
            return given, given >= 0
        label, counts = given.copy(), np.zeros(B, bool)
        rated = self.rate(softmax(outputs["logits/shape"]), outputs["z"])
        for i in range(B):
            if batch["seed"][i] and given[i] >= 0:
                counts[i] = True
                continue
            if rated[i].max() >= self.o.threshold:
                label[i], counts[i] = rated[i].argmax(), True
            elif given[i] >= 0 and rated[i, given[i]] >= 1 / C:
                counts[i] = True
        return label, counts

    def loss(self, outputs, batch, progress, decided):
        o = self.o
        label, counts = decided
        started = progress >= o.warmup
        keys, theirs = batch["momentum/z"], softmax(batch["momentum/logits/shape"])
        later = list(self.queue)
        for i in range(B):
            place = (self.at + i) % Q
            if place < len(later):
                later[place] = (keys[i], theirs[i])
            else:
                later.append((keys[i], theirs[i]))
        rows = np.array([row for row, _ in later])
        rated = self.rate(np.array([p for _, p in later]), rows)
        log_p = log_softmax(outputs["logits/shape"], -1)
        total = 0.0
        for i in np.flatnonzero(counts):
            # No gradient flows into the soft label.
            soft = softmax(self.known["z"][i] @ rows.T / o.temperature) @ rated
            beta = o.bootstrap if started else 0.0
            total -= (1 - beta) * log_p[i, label[i]] + beta * (soft * log_p[i]).sum()
            if started and self.visited[label[i]]:
                near = log_softmax(self.near(outputs["z"][i : i + 1]), -1)[0]
                total -= o.prototype * near[label[i]]
        total /= max(counts.sum(), 1)
        before = np.array([row for row, _ in self.queue]).reshape(-1, D)
        for i in range(B):
            own = outputs["z"][i] @ keys[i]
            scores = np.append(own, outputs["z"][i] @ before.T) / o.temperature
            total -= o.instance * log_softmax(scores[None], -1)[0, 0] / B
        self.later = later
        return total

    def update(self, outputs, batch, progress, decided):
        label, counts = decided
        started = progress >= self.o.warmup
        movers = counts if started else counts & (batch["seed"] > 0)
        if started:
            self._scale()
        for i in np.flatnonzero(movers):
            m = self.o.decay
            self.prototypes[label[i]] = self.prototypes[label[i]] * m + (1 - m) * outputs["z"][i]
            self.visited[label[i]] += 1
        if started:
            self._scale()
        self.queue = self.later
        self.at = (self.at + B) % Q

    def _scale(self):
        lengths = np.linalg.norm(self.prototypes, axis=1, keepdims=True)
        self.prototypes /= np.maximum(lengths, 1e-12)


@functools.cache
def compiled(objective):
    def loss(outputs, batch, state, progress):
        found, state = objective(outputs, batch, state, context(progress=progress))
        return found.value, (state, found.metrics)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(objective, steps, place=lambda x: x):
    """(loss, gradients, state, metrics) after each of the steps."""
    shapes = [jax.eval_shape(lambda x=x: low(x)) for x in steps[0][:2]]
    state = objective.init_state(StateSpec(*shapes, 10))
    found = []
    for outputs, batch, progress in steps:
        rows = lambda tree: {name: place(x) for name, x in low(tree).items()}
        (value, (state, metrics)), slope = compiled(objective)(
            rows(outputs), rows(batch), state, jnp.float32(progress)
        )
        found.append((value, slope, state, metrics))
    return found


def test_losses_labels_and_state_are_those_of_the_release():
    """Eight steps of eight rows through a queue of twenty: four of warm-up, four of cleaning."""
    some = steps(8)
    oracle = Release(OBJECTIVE)
    corrected, dropped, late = 0, 0, 0
    for i, (value, slope, state, metrics) in enumerate(run(OBJECTIVE, some)):
        outputs, batch, progress = some[i]
        outputs, batch = (
            {k: np.float64(np.float32(x)) if x.dtype.kind == "f" else x for k, x in t.items()}
            for t in (outputs, batch)
        )
        oracle.known = outputs
        decided = oracle.labels(outputs, batch, progress)
        want = oracle.loss(outputs, batch, progress, decided)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        exact = slopes(lambda x: oracle.loss(x, batch, progress, decided), outputs)  # noqa: B023
        for name, gradient in slope.items():
            np.testing.assert_allclose(gradient, exact[name], rtol=1e-4, atol=2e-5, err_msg=name)
        oracle.loss(outputs, batch, progress, decided)
        oracle.update(outputs, batch, progress, decided)
        np.testing.assert_allclose(state["prototypes"], oracle.prototypes, atol=1e-6)
        np.testing.assert_array_equal(state["visited"], oracle.visited)
        rows = np.array([row for row, _ in oracle.queue])
        np.testing.assert_allclose(state["queue"][: len(rows)], rows, atol=1e-6)
        assert state["filled"] == len(rows) and state["place"] == oracle.at
        known = (batch["shape"] >= 0).sum()
        np.testing.assert_allclose(metrics["kept"], decided[1].sum() / known, rtol=1e-6)
        corrected += ((decided[0] != batch["shape"]) & decided[1]).sum()
        dropped += (~decided[1] & (batch["shape"] >= 0)).sum()
        late += progress >= OBJECTIVE.warmup and (oracle.visited == 0).any()
        if progress >= OBJECTIVE.warmup:
            lengths = np.linalg.norm(state["prototypes"], axis=1)[np.asarray(oracle.visited) > 0]
            np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    assert min(corrected, dropped, late) > 0, "the steps hold every case"


def test_eight_devices_equal_one():
    """Rows, queue and prototypes sharded; steps before and after the warm-up."""
    some = steps(6, seed=3)
    one = run(OBJECTIVE, some)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        eight = run(OBJECTIVE, some, lambda x: jax.device_put(x, batch_sharding(mesh)))
    for (a, ga, sa, _), (b, gb, sb, _) in zip(one, eight):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ga, gb)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), sa, sb)


def test_the_rule():
    rated = jnp.float32(
        [[0.7, 0.2, 0.1, 0.0], [0.3, 0.3, 0.3, 0.1], [0.4, 0.4, 0.1, 0.1], [0.0, 0.9, 0.1, 0.0]]
    )
    label = jnp.int32([1, 0, 3, 0])
    seeds = jnp.array([False, False, False, True])
    found = clean(rated, label, seeds, 0.6)
    np.testing.assert_array_equal(found.label, [0, 0, 3, 0])  # corrected, kept, -, a seed's own
    np.testing.assert_array_equal(found.kept, [True, True, False, True])
    none = clean(rated, jnp.full(4, -1), seeds, 0.6)
    np.testing.assert_array_equal(none.kept, [True, False, False, True])
    np.testing.assert_array_equal(none.label, [0, -1, -1, 1])


def test_refusals():
    with pytest.raises(ConfigError, match="15 rows have no room for a batch of 16"):
        Capro(head="a", queue=15).check_data(types.SimpleNamespace(batch=16))
    with pytest.raises(ConfigError, match="decay: 1.5 must be in"):
        Capro(head="a", decay=1.5)
    whole = Capro(head="shape", projected="z/image", key="z/image_2")
    assert whole.batch_keys[2:] == ("momentum/z/image_2", "momentum/logits/shape")
