"""The jobs on encoders whose answers are known, against plain numpy; 8 devices as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import Records, encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.data.tables import PRESENT, Tabled, read_table, write_table
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.jobs import cache_features, mine_negatives
from jaxvl.jobs.balance import Balance
from jaxvl.jobs.cache_features import CacheFeatures
from jaxvl.jobs.kmeans import KMeans, cumulative
from jaxvl.jobs.knn_clean import KnnClean, vote
from jaxvl.jobs.mine_negatives import MineNegatives
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ONE = make_mesh(devices=jax.devices()[:1])
IMAGE = unit(64, 8, seed=1)
TEXT = unit(64, 8, seed=2)
LABELS = [(7 * i) % 40 for i in range(50)]  # some classes twice, so that groups have members
EN = dict(text="name/en")


@pytest.fixture(scope="module", params=[MESH, ONE], ids=["8 devices", "1 device"])
def model(request):
    return encoders(request.param, IMAGE, TEXT)


def source(**faults):
    return toy(LABELS, **faults).records


def run(job, model, records):
    job.check(model, records)
    columns = job.run(model, records)
    return {
        name: v if isinstance(v, np.ndarray) else np.concatenate(list(v))
        for name, v in columns.items()
    }


# --------------------------------------------------------------------------------------------------
# mine_negatives


def mined_reference(queries, candidates, groups, above, below, cut):
    """By sorting every row of the whole matrix, float64."""
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    out = np.full((len(queries), above + below), -1)
    for i, row in enumerate(scores):
        others = [j for j in np.argsort(-row, kind="stable") if groups[j] != groups[i]]
        higher = [j for j in others if row[j] > row[i] + 1e-6][:above]
        out[i, : len(higher)] = higher
        lower = others[cut : cut + below]
        out[i, above : above + len(lower)] = lower
    return out


@pytest.mark.parametrize(
    "query, group, above, below, cut",
    [("text", "class_label", 2, 3, 5), ("image", None, 1, 1, 45), ("text", None, 0, 2, 49)],
)
def test_negatives_are_those_of_the_whole_matrix(
    model, monkeypatch, query, group, above, below, cut
):
    monkeypatch.setattr(mine_negatives, "BLOCK", 16)
    records = source()
    job = MineNegatives(query=query, group=group, above=above, below=below, cut=cut, **EN)
    found = run(job, model, records)["negative"]
    sides = {"image": IMAGE[LABELS], "text": TEXT[LABELS]}
    other = {"image": "text", "text": "image"}[query]
    groups = np.array(LABELS) if group else np.arange(50)
    expected = mined_reference(sides[query], sides[other], groups, above, below, cut)
    # Equal pictures have equal scores: what is compared is their class.
    classes = np.append(np.array(LABELS), -1)
    np.testing.assert_array_equal(classes[found], classes[expected])
    own = groups[:, None] == np.append(groups, -1)[found]
    assert not own.any(), "no negative is of the group of its anchor"
    assert (found < 0).any() == (expected < 0).any()


def test_records_that_cannot_be_embedded_have_no_negatives_and_are_none(model):
    found = run(MineNegatives(**EN, cut=2, below=2), model, source(broken=(3, 9)))["negative"]
    assert (found[[3, 9]] == -1).all() and not np.isin(found, [3, 9]).any()
    assert MineNegatives.numbers == ("negative",)


def test_kinds_do_not_overlap():
    with pytest.raises(ConfigError, match="^above: 6 must be at most cut, 5"):
        MineNegatives(above=6, cut=5)
    with pytest.raises(ConfigError, match="^above: 0 and below=0 leave nothing"):
        MineNegatives(above=0, below=0)


# --------------------------------------------------------------------------------------------------
# knn_clean


def clean_reference(rows, labels, k, agree, relabel):
    """One record after the other, float64."""
    scores = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    out = []
    for i, row in enumerate(scores):
        near = labels[np.argsort(-row, kind="stable")[:k]]
        counts = np.bincount(near)
        if (near == labels[i]).mean() >= agree:
            out.append(labels[i])
        else:
            out.append(counts.argmax() if counts.max() >= relabel * k else -1)
    return np.array(out)


class Noisy(Records):
    """Five groups of alike pictures; `class_label` is the group, wrong for some records."""

    def __init__(self):
        super().__init__([(k, {"en": [f"word {k}", []]}) for k in range(60)])
        self.truth = np.arange(60) % 5
        self.noisy = self.truth.copy()
        wrong = np.random.default_rng(5).permutation(60)[:18]
        self.noisy[wrong] = (self.truth[wrong] + 1 + wrong % 4) % 5

    def column(self, name):
        return self.noisy if name == "class_label" else None


def test_labels_are_cleaned_by_their_neighbours(model):
    records = Noisy()
    table = IMAGE.copy()
    centres = unit(5, 8, seed=9)
    table[:60] = centres[records.truth] + 0.25 * unit(60, 8, seed=10)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    found = run(
        KnnClean(k=5, agree=0.5, relabel=0.8),
        model.with_weights({"image": jax.numpy.asarray(table), "text": table}),
        records,
    )
    expected = clean_reference(table[:60], records.noisy, 5, 0.5, 0.8)
    np.testing.assert_array_equal(found["label"], expected)
    np.testing.assert_array_equal(found["keep"], expected >= 0)
    kept = found["keep"] > 0
    before = (records.noisy == records.truth).mean()
    assert (found["label"] == records.truth)[kept].mean() > before + 0.15, "of 70 % right ones"
    assert (found["label"] != records.noisy)[kept].any() and not kept.all()


def test_votes():
    near = np.array([[1, 1, 1, 2], [2, 2, 1, 1], [3, 3, 3, 3], [0, 1, 2, 3]])
    own = np.array([2, 1, 0, 0])
    agreement, label = vote(near, own, agree=0.5, relabel=0.75)
    np.testing.assert_array_equal(agreement, np.float32([0.25, 0.5, 0, 0.25]))
    np.testing.assert_array_equal(label, [1, 1, 3, -1])
    assert vote(near[1:2], np.array([5]), 0.5, 0.5)[1] == [1], "of equally many the smallest"


# --------------------------------------------------------------------------------------------------
# kmeans


def test_clusters_of_records(model):
    table = np.repeat(unit(4, 8, seed=3), 16, axis=0) + 0.05 * unit(64, 8, seed=4)
    weights = {"image": jax.numpy.asarray(table), "text": table}
    records = source(broken=(3,))
    # Only that alike records are together is known: of which number a cluster is, is drawn.
    found = run(KMeans(k=3), model.with_weights(weights), records)["cluster"]
    assert found[3] == -1 and found.dtype == np.int32
    group = np.array(LABELS) // 16
    for value in range(3):
        assert len(set(found[(group == value) & (found >= 0)])) == 1
    assert set(found) == {-1, 0, 1, 2}
    with pytest.raises(ConfigError, match="^k: 51 must be at most 50"):
        run(KMeans(k=51), model, records)


def test_clusters_within_those_of_earlier_stages():
    earlier = np.array([0, 0, 1, 1, -1, 0])
    found = cumulative([earlier], np.array([5, 7, 5, 7, 5, 5], np.int32))
    np.testing.assert_array_equal(found, [0, 1, 2, 3, -1, 0])
    labels = np.array([4, 2], np.int32)
    assert cumulative([], labels) is labels


def test_rows_are_those_that_are_asked_for(model):
    records = source(broken=(3,))
    rows, index = KMeans(of="pair", **EN).rows(model, records)
    pair = np.concatenate([IMAGE[LABELS], TEXT[LABELS]], axis=1) / np.sqrt(2)
    np.testing.assert_allclose(rows, np.delete(pair, 3, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(index, np.delete(np.arange(50), 3))
    rows, index = KMeans(of="text", **EN).rows(model, records)
    np.testing.assert_array_equal(rows, TEXT[LABELS])
    with pytest.raises(DataError, match="no record has what the job embeds"):
        KMeans().rows(model, source(broken=range(50)))


# --------------------------------------------------------------------------------------------------
# cache_features


def test_cached_features_are_the_encoders_own(model, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_features, "FEW", 16)
    monkeypatch.setattr(cache_features, "BLOCK", 32)
    records = source(broken=(3, 48, 49))
    names = ("image", "text", "image_tokens", "image_mean")
    found = run(CacheFeatures(features=names, dtype="float16", **EN), model, records)
    present = found.pop(PRESENT)
    assert records.reads == len(records), "a picture is read once for all features"
    np.testing.assert_array_equal(np.flatnonzero(~present), [3, 48, 49])
    np.testing.assert_array_equal(found["text"], TEXT[LABELS].astype(np.float16))
    np.testing.assert_array_equal(found["image"][present], IMAGE[LABELS][present].astype("f2"))
    tokens = model.features(records).rows.astype(np.float16)
    np.testing.assert_array_equal(found["image_tokens"][present], tokens)
    mean = model.features(records, mean=True).rows.astype(np.float16)
    np.testing.assert_array_equal(found["image_mean"][present], mean)
    assert all(column.dtype == np.float16 for column in found.values())


def test_jobs_on_cached_features_read_no_picture(model, tmp_path):
    records = source()
    columns = CacheFeatures(features=("image",)).run(model, records)
    write_table(tmp_path / "1", columns, records=50, source="toy", made_from={}, step=1)
    cached = Tabled(records, {"f": read_table(tmp_path)})
    reads = records.reads
    assert cached.columns["f"] == Column("array")
    of_cache = run(KMeans(k=4, features="f"), model, cached)["cluster"]
    assert records.reads == reads
    np.testing.assert_array_equal(of_cache, run(KMeans(k=4), model, records)["cluster"])
    with pytest.raises(ConfigError, match="^features: 'image' of toy holds"):
        run(KMeans(features="image"), model, cached)


def test_features_are_named_once():
    with pytest.raises(ConfigError, match="^features: .*must be different ones"):
        CacheFeatures(features=("image", "image"))


def with_outputs(model):
    """The encoders with named outputs: twice the image's rows, and two tokens of each text."""

    def outputs(weights, batch):
        found = {}
        if "image" in batch:
            found["bare/image"] = 2 * model.functions.image(weights, batch["image"])
        if "text" in batch:
            row = model.functions.text(weights, batch["text"])
            found["bare/tokens"] = jnp.stack([row, -row], 1)
        return found

    functions = Functions(model.functions.image, model.functions.text, outputs)
    rest = (model.tokenizer, model.preprocess, model.text_length, model.mesh)
    return Encoders(functions, model.weights, *rest, batch=16)


def test_any_output_of_the_model_is_cached(monkeypatch):
    monkeypatch.setattr(cache_features, "FEW", 32)
    model = with_outputs(encoders(ONE, IMAGE, TEXT))
    outputs = dict(pooled=("image", "bare/image"), tokens=("text", "bare/tokens"))
    job = CacheFeatures(features=("image",), outputs=outputs, **EN)
    records = source(broken=(3,))
    found = run(job, model, records)
    present = found.pop(PRESENT)
    assert records.reads == len(records)
    np.testing.assert_array_equal(found["image"][present], np.delete(IMAGE[LABELS], 3, axis=0))
    np.testing.assert_array_equal(np.flatnonzero(~present), [3])
    expected = np.delete(2 * IMAGE[LABELS], 3, axis=0)
    np.testing.assert_array_equal(found["pooled"][present], expected)
    text = TEXT[LABELS]
    np.testing.assert_array_equal(found["tokens"], np.stack([text, -text], 1))
    with pytest.raises(ConfigError, match="needs the model output 'bare/tokens', which is not the"):
        job = CacheFeatures(features=(), outputs=dict(tokens=("image", "bare/tokens")))
        run(job, model, source())
    for options, problem in (
        (dict(features=()), "^features: must name at least one feature, or outputs"),
        (dict(outputs=dict(image=("image", "a"))), "^outputs.image: is the name of a feature"),
    ):
        with pytest.raises(ConfigError, match=problem):
            CacheFeatures(**options)


# --------------------------------------------------------------------------------------------------
# balance


def balanced_reference(rows, of_prototypes, concepts, each):
    """Concept by concept, float64."""
    keep = np.zeros(len(rows), int)
    for concept in set(concepts):
        own = [i for i in range(len(rows)) if concepts[i] == concept]
        mean = sum(np.float64(of_prototypes[i]) for i in own)
        cosine = {i: np.float64(rows[i]) @ mean / np.linalg.norm(mean) for i in own}
        for i in sorted(own, key=lambda i: -cosine[i])[:each]:
            keep[i] = 1
    return keep


class Concepts(Records):
    """Each picture of its own, in four concepts of unequal size."""

    def __init__(self, **faults):
        super().__init__([(k, {"en": [f"word {k}", []]}) for k in range(40)], **faults)
        self.concepts = np.repeat([0, 1, 2, -1], [20, 12, 3, 5])

    def column(self, name):
        return self.concepts if name == "class_label" else None


@pytest.mark.parametrize("prototypes", ["image", "text"])
def test_every_concept_keeps_the_nearest_to_its_prototype(model, prototypes):
    job = Balance(each=6, prototypes=prototypes, **EN)
    records = Concepts(broken=(1,))
    found = run(job, model, records)["keep"]
    sides = dict(image=IMAGE[:40], text=TEXT[:40])
    embedded = np.ones(40, bool)
    embedded[1] = prototypes == "text"  # its picture cannot be read
    usable = np.flatnonzero(embedded & (records.concepts >= 0))
    expected = np.zeros(40, int)
    expected[usable] = balanced_reference(
        TEXT[:40][usable], sides[prototypes][usable], records.concepts[usable], 6
    )
    np.testing.assert_array_equal(found, expected)
    counts = np.bincount(records.concepts[found > 0])
    np.testing.assert_array_equal(counts, [6, 6, 3])


def test_concepts_that_do_not_fit_are_named(model):
    with pytest.raises(ConfigError, match="^prototypes: 'pair' are of another width"):
        Balance(prototypes="pair")
    with pytest.raises(ConfigError, match="^concept: 'parity' of toy can only be read record by"):
        run(Balance(concept="parity", **EN), model, Concepts())
    with pytest.raises(DataError, match="no record has 'class_label' and what is embedded"):
        records = Concepts()
        records.concepts[:] = -1
        run(Balance(**EN), model, records)
