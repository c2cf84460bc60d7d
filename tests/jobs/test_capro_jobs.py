"""CAPro's jobs against dense numpy, record by record: seeds by smoothed texts, labels by
prototypes."""

import types

import jax
import numpy as np
import pytest
from known_answers import encoders, toy, unit
from scipy import sparse

from jaxvl.config import ConfigError, check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.encoders import EncodedImages
from jaxvl.jobs import prototype_clean, text_seeds
from jaxvl.jobs.prototype_clean import PrototypeClean
from jaxvl.jobs.text_seeds import TextSeeds, smoothing
from jaxvl.sharding.mesh import MeshConfig, make_mesh

IMAGE = unit(64, 8, seed=1)
TEXT = unit(64, 8, seed=2)
LABELS = [(7 * i) % 40 for i in range(50)]
MESHES = {
    "8 devices": make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
    "1 device": make_mesh(devices=jax.devices()[:1]),
}


@pytest.fixture(scope="module", params=MESHES)
def model(request):
    return encoders(MESHES[request.param], IMAGE, TEXT)


def smoothed(images, texts, k, self_weight=0.0):
    """`sgc_precompute` with degree 1 on the k nearest others, dense, float64."""
    cosines = np.float64(images) @ np.float64(images).T
    np.fill_diagonal(cosines, -np.inf)
    adjacent = np.zeros(cosines.shape)
    for i, row in enumerate(cosines):
        near = np.argsort(-row, kind="stable")[:k]
        adjacent[i, near] = np.maximum(row[near], 0.0)
    adjacent = np.maximum(adjacent, adjacent.T)
    adjacent /= adjacent.sum(1, keepdims=True)
    adjacent += self_weight * np.eye(len(adjacent))
    return adjacent / adjacent.sum(1, keepdims=True) @ np.float64(texts)


def run(job, model, records):
    job.check(model, records)
    return job.run(model, records)


def test_seeds_have_the_texts_that_are_most_like_their_class(model, monkeypatch):
    monkeypatch.setattr(text_seeds, "BLOCK", 16)
    labels = list(range(50))  # pictures that all differ, two classes of them
    records = toy(labels, broken=(3, 9)).records
    job = TextSeeds(
        label="parity",
        text="name/en",
        definitions=("word 60", "word 61"),
        k=4,
        self_weight=0.5,
        count=6,
    )
    found = run(job, model, records)
    seen = np.delete(np.arange(50), [3, 9])
    smooth = smoothed(IMAGE[seen], TEXT[seen], 4, 0.5)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    match = np.zeros(50)
    match[seen] = (smooth * TEXT[60 + seen % 2]).sum(1)
    np.testing.assert_allclose(found["match"], match, atol=1e-5)
    for parity in (0, 1):
        own = seen[seen % 2 == parity]
        best = own[np.argsort(-match[own])[:6]]
        np.testing.assert_array_equal(
            np.flatnonzero(found["seed"][parity::2]) * 2 + parity, sorted(best)
        )


def test_a_text_that_is_missing_is_that_of_the_neighbours(model):
    rows = toy(list(range(50))).records
    rows.rows = [(k, {} if k == 7 else texts) for k, texts in rows.rows]
    found = run(TextSeeds(label="parity", text="name/en", k=4, count=6), model, rows)
    texts = np.where(np.arange(50)[:, None] == 7, 0.0, TEXT[:50])
    smooth = smoothed(IMAGE[:50], texts, 4)[7]
    names = run(TextSeeds(label="parity", text="name/en", k=4), model, toy(list(range(50))).records)
    assert found["match"][7] != 0 and smooth.any() and names["match"].shape == (50,)


def test_a_record_without_neighbours_keeps_its_text():
    one_way = sparse.csr_matrix(np.float64([[0, 0.5, 0], [0, 0, 0], [0, 0, 0]]))
    found = smoothing(one_way, 0.0).toarray()
    np.testing.assert_allclose(found, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_neighbours_outvote_wrong_texts_and_stand_for_missing_ones():
    """Of the labels 40 % are drawn anew, of the texts 30 % are another's and 20 % are missing: the
    match tells right labels from wrong ones, which the texts alone do less well."""
    rng = np.random.default_rng(0)
    n, classes, width = 300, 5, 12
    long = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    other = lambda share, own: np.where(rng.random(n) < share, rng.integers(0, classes, n), own)
    noisy = lambda rows: long(rows + 0.8 * rng.normal(size=rows.shape) / width**0.5)
    pictures, definitions = unit(classes, width, seed=5), unit(classes, width, seed=6)
    truth = rng.integers(0, classes, n)
    labels = other(0.4, truth)
    texts = noisy(definitions[other(0.3, truth)]) * (rng.random((n, 1)) >= 0.2)
    encoders = types.SimpleNamespace(mesh=MESHES["1 device"])
    graph = TextSeeds(k=10).graph(np.float32(noisy(pictures[truth])), encoders)

    def area(rows):
        """Under the curve; equal matches count half."""
        match = (long(rows) * definitions[labels]).sum(1)
        right = labels == truth
        above = match[right][:, None] - match[~right]
        return ((above > 0) + (above == 0) / 2).mean()

    smooth, alone = area(graph @ texts), area(texts)
    assert smooth > 0.95 and smooth > alone + 0.1, (smooth, alone)


def test_definitions_are_as_many_as_classes(model):
    with pytest.raises(ConfigError, match="^definitions: are 1, of 2 classes"):
        run(TextSeeds(label="parity", text="name/en", definitions=("a",)), model, toy([1]).records)


class Outputs:
    """Stands for `Encoders`: named outputs of the pictures of all records but one."""

    def __init__(self, outputs, missing):
        self.outputs = outputs
        self.missing = missing

    input_shapes = {"image": None}

    def check_outputs(self, batch, names):
        for name in names:
            check(name in self.outputs, "name", f"no output {name!r}")

    def together(self, source, names, column):
        del column
        index = np.delete(np.arange(len(source)), self.missing)
        return {name: EncodedImages(self.outputs[name][index], index, {}) for name in names}


class Web:
    """Labels and seeds of records; those at `absent` have no label, where a column holds 0."""

    name = "web"

    def __init__(self, labels, seeds, absent=()):
        self.labelled = ~np.isin(np.arange(len(labels)), absent)
        labels = np.where(self.labelled, labels, 0)
        self.values = {"class_label": labels, "seed": seeds, "image": None}
        self.columns = {
            "class_label": Column("int"),
            "seed": Column("int"),
            "image": Column("image"),
        }

    def __len__(self):
        return len(self.values["seed"])

    def column(self, name):
        return self.values[name]

    def present(self, name):
        return self.labelled if name == "class_label" else None


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_labels_are_kept_corrected_or_dropped(monkeypatch):
    monkeypatch.setattr(prototype_clean, "BLOCK", 16)
    rng = np.random.default_rng(0)
    n, classes = 60, 5
    truth = rng.integers(0, classes, n)
    labels = np.where(rng.random(n) < 0.4, rng.integers(0, classes, n), truth)
    seeds = ((labels == truth) & (rng.random(n) < 0.4)).astype(int)
    seeds[0] = 1
    z = unit(classes, 8, seed=3)[truth] + 0.5 * unit(n, 8, seed=4)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[truth]
    model = Outputs({"projected": np.float32(z), "logits/head": np.float32(logits)}, missing=11)
    absent = np.flatnonzero(labels > 0)[:8]
    seeds[absent] = 0
    found = run(PrototypeClean(head="head"), model, Web(labels, seeds, absent))
    labels[absent] = -1
    here = np.delete(np.arange(n), 11)
    means = [z[here][(labels[here] == c) & (seeds[here] > 0)].mean(0) for c in range(classes)]
    c = np.array(means) / np.linalg.norm(means, axis=1, keepdims=True)
    rated = 0.5 * softmax(logits) + 0.5 * softmax(z @ c.T / 0.1)
    for i in here:
        stays = labels[i] >= 0 and rated[i, labels[i]] >= 1 / classes
        if seeds[i] or (rated[i].max() < 0.6 and stays):
            want = labels[i]
        else:
            want = rated[i].argmax() if rated[i].max() >= 0.6 else -1
        assert (found["label"][i], found["keep"][i]) == (want, want >= 0), i
    assert found["label"][11] == -1
    kept = found["keep"] > 0
    assert (found["label"] != labels)[kept].sum() > 0 and not kept[here].all()
    assert (found["label"] == truth)[kept].mean() > (labels == truth).mean() + 0.2
    with pytest.raises(DataError, match="web: no record with a picture and a label is a seed"):
        run(PrototypeClean(head="head"), model, Web(labels, 0 * seeds))
    with pytest.raises(ConfigError, match="label: 'class_label' has the number 5; must be below"):
        run(PrototypeClean(head="head"), model, Web(labels + 1 + (labels < 0), seeds))
    with pytest.raises(ConfigError, match="no output 'logits/other'"):
        run(PrototypeClean(head="other"), model, Web(labels, seeds))
