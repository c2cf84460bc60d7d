"""CAPro on features with wrong labels and wrong texts: what its parts make of them."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvl.jobs.text_seeds import TextSeeds
from jaxvl.objectives import Context, StateSpec
from jaxvl.objectives.capro import Capro, clean
from jaxvl.sharding.mesh import make_mesh

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
CLASSES, WIDTH, HIDDEN, DIM = 10, 24, 128, 16
SEEN, UNSEEN = 1200, 2000
STEPS, BATCH = 600, 64
OBJECTIVE = Capro(head="kind", projected="z", label="label", queue=512, decay=0.99, warmup=0.2)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def web(seed):
    """Features, true and given labels and seeds: of 40 % the label is drawn anew, of 30 % the text
    is another's, of 20 % there is none."""
    rng = np.random.default_rng(seed)
    centres, definitions = (unit(rng.normal(size=(CLASSES, WIDTH))) for _ in range(2))
    truth = rng.integers(0, CLASSES, SEEN + UNSEEN)
    x = centres[truth] + 1.1 * rng.normal(size=(len(truth), WIDTH)) / WIDTH**0.5
    given = np.where(rng.random(SEEN) < 0.4, rng.integers(0, CLASSES, SEEN), truth[:SEEN])
    said = np.where(rng.random(SEEN) < 0.3, rng.integers(0, CLASSES, SEEN), truth[:SEEN])
    texts = unit(definitions[said] + rng.normal(size=(SEEN, WIDTH)) / WIDTH**0.5)
    texts[rng.random(SEEN) < 0.2] = 0.0
    encoders = types.SimpleNamespace(mesh=make_mesh(devices=jax.devices()[:1]))
    job = TextSeeds(k=10, count=30)
    smooth = unit(job.graph(np.float32(unit(x[:SEEN])), encoders) @ texts)
    match = (smooth * definitions[given]).sum(1)
    seeds = np.zeros(SEEN, np.int32)
    for label in range(CLASSES):
        own = np.flatnonzero(given == label)
        seeds[own[np.argsort(-match[own])[: job.count]]] = 1
    return np.float32(x), truth, given, seeds


def init(key):
    keys = jax.random.split(key, 3)
    shapes = dict(up=(WIDTH, HIDDEN), z=(HIDDEN, DIM), kind=(HIDDEN, CLASSES))
    return {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items())}


def network(params, x):
    hidden = jax.nn.relu(x @ params["up"])
    z = hidden @ params["z"]
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.square(z).sum(1, keepdims=True), 1e-12))
    return {"z": z, "logits/kind": hidden @ params["kind"]}


@functools.partial(jax.jit, static_argnums=0)
def trained(cleans, x, label, seeds, rows, key):
    """Parameters and state after steps of rows int [S, B]: of CAPro, or of the class head alone,
    where labels < 0 do not count."""
    tx = optax.adam(2e-3)
    params = init(key)
    batch = dict(label=label[rows[0]], seed=seeds[rows[0]])
    outputs = jax.eval_shape(network, params, x[rows[0]])
    state = OBJECTIVE.init_state(StateSpec(outputs, batch, STEPS))

    def loss(params, teacher, state, i, some):
        keys = jax.random.split(jax.random.fold_in(key, i))
        views = [x[some] + 0.1 * jax.random.normal(k, x[some].shape) for k in keys]
        outputs = network(params, views[0])
        if not cleans:
            log_p = jax.nn.log_softmax(outputs["logits/kind"])
            own = jax.nn.one_hot(label[some], CLASSES)
            return -(own * log_p).sum() / jnp.maximum(own.sum(), 1), state
        theirs = {f"momentum/{n}": v for n, v in network(teacher, views[1]).items()}
        batch = dict(label=label[some], seed=seeds[some], **theirs)
        found, state = OBJECTIVE(outputs, batch, state, Context(keys[0], i, i / STEPS))
        return found.value, state

    def step(carry, given):
        params, teacher, optimiser, state = carry
        slope, state = jax.grad(loss, has_aux=True)(params, teacher, state, *given)
        updates, optimiser = tx.update(slope, optimiser)
        params = optax.apply_updates(params, updates)
        teacher = jax.tree.map(lambda t, p: 0.99 * t + 0.01 * p, teacher, params)
        return (params, teacher, optimiser, state), None

    carry = params, params, tx.init(params), state
    (params, _, _, state), _ = jax.lax.scan(step, carry, (jnp.arange(STEPS), rows))
    return params, state


def measured(seed):
    x, truth, given, seeds = web(seed)
    rng = np.random.default_rng(seed + 50)
    rows = jnp.asarray(rng.integers(0, SEEN, (2, STEPS, BATCH)))
    key = jax.random.key(seed)
    of = lambda cleans, label, rows: trained(
        cleans, x[:SEEN], jnp.asarray(label, jnp.int32), seeds, rows, key
    )
    params, state = of(True, given, rows[0])
    found = network(params, x[:SEEN])
    near = jax.nn.softmax(found["z"] @ state["prototypes"].T / OBJECTIVE.temperature)
    rated = 0.5 * jax.nn.softmax(found["logits/kind"]) + 0.5 * near
    rule = clean(rated, jnp.asarray(given), jnp.asarray(seeds > 0), OBJECTIVE.threshold)
    kept = np.asarray(rule.kept)
    label = np.where(kept, rule.label, -1)
    right = lambda params: float(
        (np.argmax(network(params, x[SEEN:])["logits/kind"], 1) == truth[SEEN:]).mean()
    )
    numbers = dict(
        given=(given == truth[:SEEN]).mean(),
        seeds=(given == truth[:SEEN])[seeds > 0].mean(),
        cleaned=(label == truth[:SEEN])[kept].mean(),
        kept=kept.mean(),
        noisy=right(of(False, given, rows[1])[0]),
        capro=right(params),
        final=right(of(False, label, rows[1])[0]),
    )
    print(seed, {name: round(float(value), 3) for name, value in numbers.items()}, flush=True)
    return numbers


def test_labels_and_accuracy_rise():
    for found in map(measured, SEEDS):
        assert found["seeds"] > found["given"] + 0.1, found
        assert found["cleaned"] > found["given"] + 0.1, found
        assert found["kept"] > 0.5, found
        assert min(found["capro"], found["final"]) > found["noisy"] + 0.02, found
