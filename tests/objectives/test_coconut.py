"""COCONUT's contrast and the distillation of logits in float64, row by row; the teacher's gradient;
devices; and what they are for: three tasks, one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective_checks import compare, log_softmax, same_on_a_mesh, unit, value_and_gradients

from jaxvl.evals.forgetting import forgetting
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.coconut import StudentTeacherContrast
from jaxvl.objectives.logit_distillation import LogitDistillation

B, D, K = 8, 4, 6
LABEL = np.array([0, 4, 1, 0, 2, 5, 1, 0])  # those below 3 are rehearsed
CONTRAST = StudentTeacherContrast(old_classes=3, temperature=0.2)
KEPT = LogitDistillation(head="word", teacher="last/logits/word", classes=3)


def example(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
    outputs = {"audio>text": draw(B, D), "logits/word": draw(B, K)}
    batch = {"last/audio>text": draw(B, D), "last/logits/word": draw(B, K), "class_label": LABEL}
    return outputs, batch


def contrast64(outputs, batch, temperature=0.2, old=3):
    z = unit(outputs["audio>text"])
    t = unit(np.float64(batch["last/audio>text"]))
    label = batch["class_label"]
    rows = [k for k in range(B) if label[k] < old]
    terms = []
    for k in rows:
        near = np.array([z[k] @ t[p] for p in rows if label[p] == label[k]]) / temperature
        far = np.array([z[k] @ z[n] for n in range(B) if label[n] != label[k]]) / temperature
        terms.append(np.log(np.exp(near).sum() + np.exp(far).sum()) - near.mean())
    return np.mean(terms) if rows else 0.0


def kept64(outputs, batch, temperature=2.0, classes=3):
    log_q, log_p = (
        log_softmax(np.float64(x)[:, :classes] / temperature, 1)
        for x in (batch["last/logits/word"], outputs["logits/word"])
    )
    return temperature**2 * (np.exp(log_q) * (log_q - log_p)).sum(1).mean()


def test_the_equations_and_their_gradients():
    outputs, batch = example()
    for objective, exact in ((CONTRAST, contrast64), (KEPT, kept64)):
        given = {name: outputs[name] for name in objective.reads}
        compare(objective, given, batch, functools.partial(exact, batch=batch))


def test_no_gradient_reaches_the_teacher():
    outputs, batch = example()
    outputs = {name: jnp.asarray(x) for name, x in outputs.items()}

    def loss(teacher):
        given = {**batch, **teacher}
        return sum(o(outputs, given, {}, None)[0].value for o in (CONTRAST, KEPT))

    teacher = {name: jnp.asarray(x) for name, x in batch.items() if name.startswith("last/")}
    for name, slope in jax.jit(jax.grad(loss))(teacher).items():
        np.testing.assert_array_equal(slope, 0.0, err_msg=name)


def test_without_rehearsed_rows_there_is_nothing_to_keep():
    outputs, batch = example()
    batch["class_label"] = np.full(B, 4)
    outputs = {"audio>text": jnp.asarray(outputs["audio>text"])}
    value, slopes = value_and_gradients(CONTRAST, outputs, batch)
    assert value == 0 and not slopes["audio>text"].any()


def test_eight_devices_equal_one():
    outputs, batch = example()
    same_on_a_mesh(CONTRAST, {"audio>text": outputs["audio>text"]}, batch)


# --------------------------------------------------------------------------------------------------
# Row 47: three tasks of two classes

INPUT, HIDDEN, KINDS, BUFFER, STEPS = 20, 64, 4, 6, 200
NCE = SymmetricSoftmax(duplicates="positive")


def sounds(seed, n, part):
    """Sounds of each of six classes, [6, n, INPUT]: every class has several kinds."""
    world = np.random.default_rng(seed)
    centres = 1.2 * world.normal(size=(K, KINDS, INPUT))
    rng = np.random.default_rng((seed, part))
    kind = rng.integers(0, KINDS, (K, n))
    x = centres[np.arange(K)[:, None], kind] + rng.normal(size=(K, n, INPUT))
    return np.float32(x)


def model(params, x):
    hidden = jax.nn.gelu(x @ params["first"])
    z = hidden @ params["second"]
    return {
        "audio>text": z / jnp.linalg.norm(z, axis=-1, keepdims=True),
        "word": z @ params["head"],
    }


def loss(params, teacher, batch, weights):
    """Of new and rehearsed rows: classes, names, and, by weight, what is kept of the teacher."""
    x, label, old = batch
    found = model(params, x)
    logits = found["word"]
    names = params["names"][label]
    outputs = {
        "audio>text": found["audio>text"],
        "logits/word": logits,
        "image": found["audio>text"],
        "text": names / jnp.linalg.norm(names, axis=-1, keepdims=True),
        "log_scale": jnp.log(10.0),
    }
    last = model(teacher, x)
    # Rehearsed rows are told by their label: those of new classes get one that is not.
    kept = {
        "last/audio>text": last["audio>text"],
        "class_label": label,
        "group_id": label,
        "last/logits/word": jnp.where(jnp.arange(K) < old, last["word"], -1e9),
    }
    known = {**outputs, "logits/word": jnp.where(jnp.arange(K) < old, logits, -1e9)}
    total = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    total += NCE(outputs, kept, {}, None)[0].value
    contrast = StudentTeacherContrast(old_classes=K, temperature=0.2)
    moved = {**kept, "class_label": jnp.where(label < old, label, label + K)}
    total += weights[0] * contrast(outputs, moved, {}, None)[0].value
    whole = LogitDistillation(head="word", teacher="last/logits/word")
    return total + weights[1] * whole(known, kept, {}, None)[0].value


@jax.jit
def trained(params, teacher, data, weights):
    """Parameters after some steps on batches of 24 new and 8 rehearsed rows."""
    tx = optax.adam(3e-3)

    def step(carry, batch):
        params, state = carry
        slope = jax.grad(loss)(params, teacher, (*batch, data["old"]), weights)
        change, state = tx.update(slope, state)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(step, (params, tx.init(params)), data["batches"])[0][0]


def forgotten(seed, weights, n=200):
    """Average forgetting after three tasks, and the accuracy over all classes then."""
    rng = np.random.default_rng(seed)
    heard = sounds(seed, n, 1)
    test = sounds(seed, n, 2)
    params = {
        "first": rng.normal(size=(INPUT, HIDDEN)) / np.sqrt(INPUT),
        "second": rng.normal(size=(HIDDEN, 16)) / np.sqrt(HIDDEN),
        "head": 0.1 * rng.normal(size=(16, K)),
        "names": rng.normal(size=(K, 16)),
    }
    params = teacher = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    figures = np.zeros((3, 3))
    for task in range(3):
        old = 2 * task
        new = rng.integers(old, old + 2, (STEPS, 24)), rng.integers(0, n, (STEPS, 24))
        kept = rng.integers(0, max(old, 1), (STEPS, 8)), rng.integers(0, BUFFER, (STEPS, 8))
        if not task:  # nothing to rehearse: more new rows
            kept = rng.integers(0, 2, (STEPS, 8)), rng.integers(0, n, (STEPS, 8))
        label, place = (np.concatenate([a, b], 1) for a, b in zip(new, kept))
        batches = jnp.asarray(heard[label, place]), jnp.asarray(label, jnp.int32)
        now = weights if task else (0.0, 0.0)
        params = trained(params, teacher, dict(batches=batches, old=old), jnp.float32(now))
        teacher = params
        for j in range(3):
            x = test[2 * j : 2 * j + 2].reshape(-1, INPUT)
            guess = np.asarray(model(params, jnp.asarray(x))["word"].argmax(1))
            figures[task, j] = (guess == np.repeat([2 * j, 2 * j + 1], n)).mean()
    return forgetting(figures), figures[2].mean()


@pytest.mark.slow
def test_less_is_forgotten_than_by_replay_alone():
    """For three seeds; with the contrast alone as well."""
    ways = {"replay": (0.0, 0.0), "contrast": (1.0, 0.0), "coconut": (1.0, 1.0)}
    found = {name: [forgotten(seed, w) for seed in range(3)] for name, w in ways.items()}
    for name, figures in found.items():
        print(name, "forgetting, accuracy:", np.round(figures, 3).tolist())
    lost = {name: np.array(figures)[:, 0] for name, figures in found.items()}
    assert (lost["coconut"] < lost["replay"] - 0.03).all()
    assert (lost["contrast"] < lost["replay"]).all()
