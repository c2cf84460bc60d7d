"""MM-Embed: the loss in float64, and a pool of pictures and texts in which mined negatives of the
wrong modality drive texts away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import call, compare, embeddings, log_softmax, same_on_a_mesh, trainer

from jaxvl.config import ConfigError
from jaxvl.data.config import DataConfig
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.samplers.with_negatives import WithNegatives
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.evals.ranking import top_k
from jaxvl.jobs.mine_negatives import MineNegatives, Pool
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives.hard_nce import HardNce
from jaxvl.sharding.mesh import make_mesh


def example(anchors=4, negatives=2, d=5):
    rows = anchors * (1 + negatives)
    text, image, document = embeddings((rows, d), (rows, d), (rows, d))
    return {"text": text, "image": image, "document": document, "log_scale": np.log(6.0)}


def paper(o, negatives=2, wrongs=1):
    """One anchor after the other: its target against all targets and all mined negatives."""
    size = 1 + negatives
    scale = np.exp(o["log_scale"])
    first = range(0, len(o["text"]), size)
    columns = [o["image"][i] for i in first]
    columns += [o["document"][i + 1 + j] for i in first for j in range(wrongs)]
    columns += [o["image"][i + 1 + j] for i in first for j in range(wrongs, negatives)]
    logits = scale * np.stack([o["text"][i] for i in first]) @ np.stack(columns).T
    return -np.diag(log_softmax(logits, 1)).mean()


@pytest.mark.parametrize("negatives, wrongs", [(2, 1), (3, 0), (1, 1)])
def test_equation(negatives, wrongs):
    outputs = example(negatives=negatives)
    objective = HardNce(negatives=negatives, wrongs=wrongs)
    fixed = () if wrongs else ("document",)
    oracle = lambda o: paper(o, negatives, wrongs)
    compare(objective, outputs, {}, oracle, fixed=fixed)


def test_devices():
    same_on_a_mesh(HardNce(), example(anchors=16), {})


def test_batches_must_be_groups():
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example().items()}
    with pytest.raises(ValueError, match="12 rows are no groups of 5"):
        call(HardNce(negatives=4), outputs, {})
    data = lambda sampler, batch=12: DataConfig(
        source=Shapes(), batch=batch, fields={"image": _picture()}, sampler=sampler
    )
    HardNce().check_data(data(WithNegatives("mined")))
    with pytest.raises(ConfigError, match="^sampler: needs batches of anchors"):
        HardNce().check_data(data(Shuffled()))
    with pytest.raises(ConfigError, match="^sampler.negatives: 1 must be 2"):
        HardNce().check_data(data(WithNegatives("mined", 1)))
    with pytest.raises(ConfigError, match="^batch: 16 must be a multiple of 3"):
        HardNce().check_data(data(WithNegatives("mined"), 16))
    with pytest.raises(ConfigError, match=r"^wrongs: must be|^wrongs: 3 must be in \[0, 2\]"):
        HardNce(wrongs=3)


def _picture():
    from jaxvl.data.fields.picture import Picture

    return Picture(size=16)


# --------------------------------------------------------------------------------------------------
# The proof

ONE = make_mesh(devices=jax.devices()[:1])
N = 240
WIDTH = 12
STEPS = 150
ANCHORS = 16
JOB = MineNegatives(text="query", document="document", cut=20)


def records(seed):
    """Pictures, queries and documents of N things. Both texts say the same in the same way; the last
    input of a query is its instruction, to find a picture."""
    rng = np.random.default_rng(seed)
    things = rng.normal(size=(N, WIDTH))
    see, read = rng.normal(size=(2, WIDTH, 24)) / np.sqrt(WIDTH)
    noisy = lambda x: x + 0.3 * rng.normal(size=x.shape)
    last = lambda x, value: np.pad(x, ((0, 0), (0, 1)), constant_values=value).astype(np.float32)
    return {
        "image": last(noisy(things @ see), 1.0),
        "text": last(noisy(things @ read), 1.0),
        "document": last(noisy(things @ read), 0.0),
    }


def model(params, x):
    outputs = {
        name: l2_normalize(x[name] @ params["image" if name == "image" else "text"]) for name in x
    }
    return {**outputs, "log_scale": jnp.log(10.0)}


def in_batch(params, key, data):
    o = model(params, _taken(data, jax.random.choice(key, N, (ANCHORS,), replace=False)))
    return contrastive_loss(o["text"], o["image"], o["log_scale"], directions="rows",
                            implementation="reference")  # fmt: skip


def mined(params, key, data):
    """Groups as the sampler makes them: an anchor and its negatives."""
    anchors = jax.random.choice(key, N, (ANCHORS,), replace=False)
    groups = jnp.concatenate([anchors[:, None], data["mined"][anchors]], 1).reshape(-1)
    batch = _taken(data, groups)
    return HardNce(implementation="reference")(model(params, batch), {}, {}, None)[0].value


def _taken(data, rows):
    return {name: data[name][rows] for name in ("image", "text", "document")}


def mine(o):
    own = np.einsum("nd,nd->n", o["text"], o["image"])
    pool = Pool(o["image"], np.arange(N), o["document"])
    return JOB._places(o["text"], own, np.arange(N), pool, ONE)


def wrong_in_ten(o):
    """Share of documents among the first ten of the pool."""
    _, best = top_k(o["text"], np.concatenate([o["image"], o["document"]]), 10, ONE)
    return float((best >= N).mean())


def shares(seed):
    """After training in the batch; after as many further steps in the batch; with negatives."""
    data = {name: jnp.asarray(x) for name, x in records(seed).items()}
    keys = jax.random.split(jax.random.key(seed))
    draw = lambda key: jax.random.normal(key, (25, 16)) / 5
    params = {"image": draw(keys[0]), "text": draw(keys[1])}
    numpy = lambda p: {k: np.asarray(v) for k, v in model(p, _taken(data, jnp.arange(N))).items()}
    first = PLAIN(params, data, STEPS)
    further = PLAIN(first, data, STEPS)
    table = jnp.asarray(mine(numpy(first)))
    random = jax.random.randint(jax.random.key(1), table.shape, 0, N)
    hard = MINED(first, {**data, "mined": jnp.where(table < 0, random, table)}, STEPS)
    return [wrong_in_ten(numpy(p)) for p in (first, further, hard)]


PLAIN = trainer(in_batch)
MINED = trainer(mined)


@pytest.mark.slow
def test_mined_negatives_of_the_wrong_modality_drive_texts_away():
    found = np.array([shares(seed) for seed in range(3)])
    print("documents in the first ten: before, without, with:", found.round(3).tolist())
    _, without, hard = found.T
    assert (without > 0.4).all()
    assert (hard < 0.5 * without).all()


def test_mining_is_a_function_of_the_embeddings():
    """The whole matrix, sorted, in float64."""
    text, image, document = embeddings((N, 6), (N, 6), (N, 6))
    o = {"text": text, "image": image, "document": document}
    low = {name: x.astype(np.float32) for name, x in o.items()}
    found = mine(low)
    np.testing.assert_array_equal(found, mine(low))
    for i in range(N):
        pictures = text[i] @ image.T
        documents = text[i] @ document.T
        own = pictures[i]
        best = documents.argmax()
        assert found[i, 0] == (best if documents[best] > own else -1)
        others = [j for j in np.argsort(-pictures) if j != i]
        rank = lambda j: (documents > pictures[j]).sum() + others.index(j)  # noqa: B023
        assert found[i, 1] == next(j for j in others if rank(j) >= JOB.cut)
