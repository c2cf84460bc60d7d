"""M3EL's scores and losses in float64; duplicates; devices; and what several scores
are for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from objective_checks import log_softmax, same_on_a_mesh, slopes, unit

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS
from jaxvl.models.base import Encoded
from jaxvl.objectives.m3el import (
    SCORES,
    MeanScore,
    MultiLevelMatching,
    as_entity,
    as_mention,
)

B, T, S, D = 8, 3, 2, 4
IDS = np.array([0, 1, 2, 0, 3, 4, 5, 1])
MASKS = {"mention": np.arange(T) < [[3], [1], [2], [3], [2], [1], [3], [2]]}
MASKS["entity"] = np.arange(S) < [[2], [1], [2], [2], [1], [1], [2], [2]]


def example(seed=0):
    """Outputs of the head, and masks of the texts, which go through no gradient."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape)
    outputs = {"log_scale": np.float64(np.log(3.0))}
    for side in ("image", "text"):
        mention, entity = (f"matching/{record}/{side}" for record in ("mention", "entity"))
        for name in (mention, f"{mention}_context", entity, f"{entity}_context"):
            outputs[name] = unit(draw(B, D))
        outputs[f"{entity}_wanted"] = unit(draw(B, D))
        outputs |= {f"{mention}_{kind}": draw(B, T, D) for kind in ("keys", "values")}
        outputs[f"{entity}_queries"] = draw(B, S, D)
    return outputs


class Masked(MultiLevelMatching):
    """With the masks of `MASKS`, which are no outputs that a test could move."""

    def __call__(self, outputs, batch, state, context):
        masks = {f"matching/{r}/text_mask": jnp.asarray(mask) for r, mask in MASKS.items()}
        return super().__call__({**outputs, **masks}, batch, state, context)


def matrices(o):
    """The four scores [B, B], mentions by entities."""
    found = {}
    for side in ("image", "text"):
        mention, entity = (f"matching/{record}/{side}" for record in ("mention", "entity"))
        heard = MASKS["mention"] if side == "text" else np.ones((B, T), bool)
        asked = MASKS["entity"] if side == "text" else np.ones((B, S), bool)
        logits = np.einsum("itd,jsd->ijst", o[f"{mention}_keys"], o[f"{entity}_queries"])
        logits = np.where(heard[:, None, None], logits / np.sqrt(D), -np.inf)
        p = np.exp(log_softmax(logits, -1)) * asked[None, :, :, None]
        shares = p.sum(2) / asked.sum(1)[:, None]
        context = unit(np.einsum("ijt,itd->ijd", shares, o[f"{mention}_values"]))
        local = np.einsum("ijd,jd->ij", context, o[f"{entity}_wanted"])
        found[side] = (o[mention] @ o[entity].T + local) / 2
    for name, side in (("text_to_image", "text"), ("image_to_text", "image")):
        a, b = (f"matching/{record}/{side}_context" for record in ("mention", "entity"))
        found[name] = o[a] @ o[b].T
    return found


def oracle(o, competes, t=0.03, r=0.8):
    scores = matrices(o)
    both = competes | np.eye(B, dtype=bool)
    total = 0.0
    for each in (sum(scores.values()) / 4, *scores.values()):
        logits = np.where(both, np.exp(o["log_scale"]) * each, -np.inf)
        total -= np.trace(log_softmax(logits, 1)) / B
    for side in ("image", "text"):
        m, e = (o[f"matching/{record}/{side}"] for record in ("mention", "entity"))
        for x, y in ((m, e), (e, m)):
            across = np.where(both, x @ y.T / t, -np.inf)
            within = np.where(competes, r * x @ x.T / t, -np.inf)
            logits = np.concatenate([across, within], 1)
            total -= np.diag(log_softmax(logits, 1)[:, :B]).mean() / 4
    return total


def as_floats(outputs):
    return {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}


def test_the_equations_and_their_gradients():
    """With rows that do not compete; and the value of others where all do."""
    objective = Masked(block=3)
    assert objective.batch_keys == ("group_id",)
    program = jax.jit(
        jax.value_and_grad(lambda o, ids: objective(o, {"group_id": ids}, {}, None)[0].value)
    )
    low = as_floats(example())
    exact = {name: np.asarray(x, np.float64) for name, x in low.items()}
    value, gradients = program(low, jnp.asarray(IDS))
    oracle_of = lambda o: oracle(o, IDS[:, None] != IDS)
    np.testing.assert_allclose(value, oracle_of(exact), rtol=1e-5)
    want = slopes(oracle_of, exact)
    for name, slope in gradients.items():
        most = max(np.abs(want[name]).max(), 1e-3)
        np.testing.assert_allclose(slope, want[name], atol=3e-5 * most, err_msg=name)
    others = oracle(exact, ~np.eye(B, dtype=bool))
    np.testing.assert_allclose(program(low, jnp.arange(B))[0], others, rtol=1e-5)
    assert abs(others - value) > 0.1

    # Entities come twice, and all that a mention knows is right: nothing is lost, but where a
    # mention's own entity is taken for another one.
    known = as_floats(perfect())
    assert program(known, jnp.arange(B) // 2)[0] < 1e-3
    assert program(known, jnp.arange(B))[0] > 5 * np.log(2)


def perfect():
    """Outputs of which two rows each are one thing."""
    o = {"log_scale": np.log(100.0)}
    rows = np.eye(D)[np.arange(B) // 2]
    for name, array in example().items():
        tokens = array.ndim == 3
        if array.ndim:
            o[name] = np.broadcast_to(rows[:, None] if tokens else rows, array.shape)
    return o


@pytest.mark.slow
def test_eight_devices_equal_one():
    same_on_a_mesh(Masked(block=3), example(), {"group_id": IDS})


def test_what_is_refused():
    assert MultiLevelMatching(duplicates="diagonal").batch_keys == ()
    with pytest.raises(ConfigError, match="duplicates: 'positive' is not for m3el"):
        MultiLevelMatching(duplicates="positive")


# --------------------------------------------------------------------------------------------------
# Row 27: a knowledge base of 200 entities with ambiguous names and looks

ENTITIES, NAMES, LOOKS, WIDTH, BATCH = 200, 40, 50, 16, 50


def world(seed):
    """Of each entity a name that four others have too, and a look that three others have."""
    rng = np.random.default_rng(seed)
    names = unit(rng.normal(size=(NAMES, WIDTH)))
    looks = unit(rng.normal(size=(LOOKS, WIDTH)))
    every = np.arange(ENTITIES)
    name = every % NAMES
    look = (every // NAMES + 5 * (every % 10) + 3 * (every // 10)) % LOOKS
    return names[name], looks[look]


def records(rng, entities, seed, noise):
    """The entities' pictures and texts: four tokens, of which one shows what it is."""
    encoded = {}
    for side, truth in zip(("text", "image"), world(seed)):
        tokens = rng.normal(size=(len(entities), 4, WIDTH)) / np.sqrt(WIDTH)
        place = rng.integers(0, 4, len(entities))
        own = truth[entities] + noise * rng.normal(size=(len(entities), WIDTH)) / np.sqrt(WIDTH)
        tokens[np.arange(len(entities)), place] = 2 * own
        encoded[side] = tokens
    return {name: jnp.asarray(x, jnp.float32) for name, x in encoded.items()}


def encoded(mention, entity):
    given = {**mention, "image_2": entity["image"], "text_2": entity["text"]}
    return {name: Encoded(x.mean(1), x) for name, x in given.items()}


def hits(seed, steps=400, noise=0.6):
    """Share of fresh mentions whose entity is first of all 200: by all scores, by each."""
    rng = np.random.default_rng(seed)
    widths = dict.fromkeys(("image", "text", "image_2", "text_2"), WIDTH)
    node = dict(name="entity_matching", dim=16)
    head = choose(HEADS, node, "head").build(widths, nnx.Rngs(params=seed))
    graph, params = nnx.split(head)
    base = records(rng, np.arange(ENTITIES), seed, 0.1)
    mentions = [rng.permutation(ENTITIES) for _ in range(8)]
    seen = [records(rng, order, seed, noise) for order in mentions]
    data = {name: jnp.concatenate([part[name] for part in seen]) for name in base}
    whose = jnp.asarray(np.concatenate(mentions))
    objective = MultiLevelMatching(block=BATCH)
    tx = optax.adam(3e-3)

    def outputs(params, mention, entity):
        model = nnx.merge(graph, params)
        found = model(encoded(mention, entity), {}, train=True, key=None, progress=None)
        return {f"matching/{name}": x for name, x in found.items()} | {"log_scale": jnp.log(20.0)}

    def loss(params, i):
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, BATCH * (i % 32), BATCH)
        ids = take(whose)
        mention = {name: take(x) for name, x in data.items()}
        entity = {name: x[ids] for name, x in base.items()}
        found = outputs(params, mention, entity)
        return objective(found, {"group_id": ids}, {}, None)[0].value

    def step(carry, i):
        params, state = carry
        change, state = tx.update(jax.grad(loss)(params, i), state)
        return (optax.apply_updates(params, change), state), None

    start = params, tx.init(params)
    params = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0])(start)[0]
    fresh = records(rng, np.arange(ENTITIES), seed, noise)
    found = outputs(params, fresh, base)
    sides = as_mention(found, "matching/mention"), as_entity(found, "matching/entity")
    best = [MeanScore(names)(*sides).argmax(1) for names in (SCORES, *((n,) for n in SCORES))]
    return [float((np.asarray(b) == np.arange(ENTITIES)).mean()) for b in best]


@pytest.mark.slow
def test_all_scores_together_link_better_than_any_alone():
    found = np.array([hits(seed) for seed in range(3)])
    print(f"hits@1 by all, {', '.join(SCORES)}:", found.round(3).tolist())
    assert (found[:, 0] > found[:, 1:].max(1) + 0.03).all()
