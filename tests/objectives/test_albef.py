"""ALBEF's losses against the equations of the release, in float64."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import call, compare, context, embeddings, log_softmax, low, nce, slopes

from jaxvl.config import ConfigError
from jaxvl.objectives import StateSpec
from jaxvl.objectives.itc_momentum import MomentumContrast
from jaxvl.objectives.itm import Matching
from jaxvl.objectives.masked_words import MaskedWords
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh

B, D, Q = 4, 3, 10
SIDES = ("image", "text")
LATE = context(progress=0.9)


def batches(count, seed=0, groups=None):
    """(outputs, batch) of some steps, float64."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        image, text, *teacher = embeddings((B, D), (B, D), (B, D), (B, D), seed=seed + 10 * i)
        outputs = dict(image=image, text=text, log_scale=np.float64(0.8))
        batch = {f"momentum/{side}": rows for side, rows in zip(SIDES, teacher)}
        if groups:
            batch["group_id"] = rng.integers(0, groups, B)
        found.append((outputs, batch))
    return found


def softmax(logits):
    return np.exp(log_softmax(logits, 1))


class Release:
    """Momentum contrast as the release of ALBEF writes it (models/model_pretrain.py and, with ids,
    models/model_retrieval.py), but that the queues begin empty and wrap around anywhere."""

    def __init__(self, alpha, ids=False):
        self.alpha = alpha
        self.ids = ids
        self.queue = {"image": [], "text": [], "group_id": []}

    def keys(self, batch):
        """The batch's rows, then those of the queue from its first place."""
        queue = {name: np.array(rows) for name, rows in self.queue.items()}
        join = lambda name, new: np.concatenate([new, queue[name]]) if len(queue[name]) else new
        found = {side: join(side, batch[f"momentum/{side}"]) for side in SIDES}
        if self.ids:
            found["group_id"] = join("group_id", batch["group_id"])
        return found

    def loss(self, outputs, batch):
        keys = self.keys(batch)
        total = 0.0
        for side, other in (SIDES, SIDES[::-1]):
            scale = np.exp(outputs["log_scale"])
            known = float(np.exp(self.scale))
            hard = np.eye(B, len(keys[other]))
            if self.ids:
                hard = (batch["group_id"][:, None] == keys["group_id"][None]).astype(float)
                hard = hard / hard.sum(1, keepdims=True)
            soft = softmax(known * batch[f"momentum/{side}"] @ keys[other].T)
            target = self.alpha * soft + (1 - self.alpha) * hard
            logits = scale * outputs[side] @ keys[other].T
            total -= (target * log_softmax(logits, 1)).sum(1).mean()
        return total / 2

    def enqueue(self, batch, at):
        """Rows take their places one by one."""
        for name, rows in self.queue.items():
            new = batch.get(name if name == "group_id" else f"momentum/{name}")
            for i, row in enumerate(new if new is not None else ()):
                place = (at + i) % Q
                if place < len(rows):
                    rows[place] = row
                else:
                    rows.append(row)


@functools.cache
def compiled(objective):
    def loss(outputs, batch, state, where):
        found, state = objective(outputs, batch, state, type(LATE)(*where))
        return found.value, state

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(objective, steps, place=lambda x: x):
    """Losses, gradients and states of the steps, one after the other."""
    batch = jax.eval_shape(lambda: low(steps[0][1]))
    state = objective.init_state(StateSpec({}, batch, 10))
    state = {name: place(x) if np.ndim(x) else x for name, x in state.items()}
    where = (LATE.key, LATE.step, LATE.progress)
    found = []
    for outputs, batch in steps:
        rows = lambda tree: {k: place(x) if x.ndim else x for k, x in low(tree).items()}
        (value, state), slope = compiled(objective)(rows(outputs), rows(batch), state, where)
        found.append((value, slope, state))
    return found


@pytest.mark.parametrize("alpha, duplicates", [(0.4, "diagonal"), (0.4, "positive"), (0.0, "mask")])
def test_the_contrast_is_that_of_the_release(alpha, duplicates):
    """Four steps of four rows through a queue of ten, which is full in the third."""
    ids = duplicates == "positive"
    steps = batches(4, groups=3 if ids else 1000)
    objective = MomentumContrast(alpha=alpha, queue=Q, duplicates=duplicates)
    oracle = Release(alpha, ids)
    for i, (value, slope, state) in enumerate(run(objective, steps)):
        outputs, batch = ({k: np.float64(np.float32(x)) for k, x in t.items()} for t in steps[i])
        oracle.scale = outputs["log_scale"]
        np.testing.assert_allclose(value, oracle.loss(outputs, batch), rtol=1e-5)
        want = slopes(lambda x: oracle.loss(x, batch), outputs)  # noqa: B023
        for name, gradient in slope.items():
            np.testing.assert_allclose(gradient, want[name], rtol=1e-4, atol=1e-5, err_msg=name)
        oracle.enqueue(batch, at=i * B % Q)
        assert state["place"] == (i + 1) * B % Q
        assert state["filled"] == min((i + 1) * B, Q)
        for side in SIDES:
            rows = oracle.queue[side]
            np.testing.assert_array_equal(state[f"{side}_queue"][: len(rows)], np.float32(rows))


def test_without_soft_targets_it_is_contrast_with_a_queue():
    """alpha = 0: NCE over the batch and the queue; on an empty queue, of a teacher that is the
    model itself, CLIP's loss."""
    (outputs, batch), *_ = batches(1)
    own = {f"momentum/{side}": outputs[side] for side in SIDES}
    ((value, _, _),) = run(MomentumContrast(alpha=0.0, queue=Q), [(outputs, own)])
    np.testing.assert_allclose(value, nce(*(outputs[s] for s in SIDES), np.exp(0.8)), rtol=1e-5)
    ((soft, _, _),) = run(MomentumContrast(alpha=0.4, queue=Q), [(outputs, batch)])
    ((hard, _, _),) = run(MomentumContrast(alpha=0.0, queue=Q), [(outputs, batch)])
    assert abs(soft - hard) > 1e-3


def test_alpha_grows_from_zero():
    objective = MomentumContrast(alpha=0.4, ramp=0.1)
    shares = [float(objective.soft_share(context(progress=p))) for p in (0.0, 0.05, 0.1, 0.7)]
    np.testing.assert_allclose(shares, [0.0, 0.2, 0.4, 0.4], rtol=1e-6)
    assert float(MomentumContrast(ramp=0.0).soft_share(context())) == np.float32(0.4)


def test_eight_devices_equal_one():
    """Rows and queues sharded; three steps, which wrap around."""
    rng = np.random.default_rng(5)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    draw = lambda: unit(rng.normal(size=(8, D)))
    steps = [
        (
            dict(image=draw(), text=draw(), log_scale=np.float64(1.0)),
            {"momentum/image": draw(), "momentum/text": draw(), "group_id": np.arange(8) % 5},
        )
        for _ in range(4)
    ]
    objective = MomentumContrast(queue=24, duplicates="positive")
    one = run(objective, steps)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        eight = run(objective, steps, lambda x: jax.device_put(x, batch_sharding(mesh)))
    for (a, ga, sa), (b, gb, sb) in zip(one, eight):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), ga, gb)
        jax.tree.map(np.testing.assert_array_equal, sa, sb)


def test_a_queue_has_room_for_a_batch():
    data = types.SimpleNamespace(batch=16)
    with pytest.raises(ConfigError, match="15 rows have no room for a batch of 16"):
        MomentumContrast(queue=15).check_data(data)
    with pytest.raises(ConfigError, match="ramp"):
        MomentumContrast(ramp=2.0)


def test_matching_is_the_cross_entropy_of_pairs_and_negatives():
    logits = np.random.default_rng(0).normal(size=(B, 3, 2))
    has = {"negatives/has_image": np.array([1, 1, 0, 1], bool)}
    has["negatives/has_text"] = np.array([1, 0, 1, 1], bool)
    counts = np.stack([np.ones(B), *has.values()], 1)

    def oracle(outputs):
        log_p = log_softmax(outputs["fusion/matching"], -1)
        right = np.stack([log_p[:, 0, 1], log_p[:, 1, 0], log_p[:, 2, 0]], 1)
        return -(counts * right).sum() / counts.sum()

    compare(Matching(), {"fusion/matching": logits}, has, oracle)
    found = call(Matching(), {"fusion/matching": jnp.float32(logits)}, has)
    right = logits.argmax(-1) == np.array([1, 0, 0])
    np.testing.assert_allclose(found.metrics["accuracy"], (counts * right).sum() / counts.sum())
    with pytest.raises(ValueError, match="negatives='negatives'"):
        Matching()({"fusion/matching": jnp.zeros((B, 1, 2))}, has, {}, None)


def test_words_are_learned_from_the_tokens_and_from_the_teacher():
    rng = np.random.default_rng(1)
    logits, known = rng.normal(size=(2, B, 5, 7))
    target = np.where(rng.random((B, 5)) < 0.4, rng.integers(0, 7, (B, 5)), -1)
    hidden = target >= 0
    assert 2 < hidden.sum() < 18
    batch = {"masked_text_target": target, "momentum/fusion/words": np.float32(known)}

    def oracle(outputs, alpha):
        log_p = log_softmax(outputs["fusion/words"], -1)
        hard = -np.take_along_axis(log_p, np.maximum(target, 0)[..., None], -1)[..., 0]
        soft = -(np.exp(log_softmax(np.float64(np.float32(known)), -1)) * log_p).sum(-1)
        loss = (1 - alpha) * hard[hidden].mean()  # as the release adds them
        return loss + alpha * soft[hidden].mean()

    outputs = {"fusion/words": logits}
    for objective, alpha in (
        (MaskedWords(), 0.4),
        (MaskedWords(teacher=None), 0.0),
    ):
        compare(objective, outputs, batch, functools.partial(oracle, alpha=alpha), LATE)
    nothing = {**batch, "masked_text_target": np.full((B, 5), -1)}
    assert call(MaskedWords(), {"fusion/words": jnp.float32(logits)}, nothing, LATE).value == 0
