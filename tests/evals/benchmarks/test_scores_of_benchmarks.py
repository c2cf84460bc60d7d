"""Figures of whole benchmarks equal those of clip_benchmark's own functions, for the same
embeddings."""

import clip_benchmark_oracle as oracle
import jax
import numpy as np
import pytest
from known_answers import encoders, unit
from tiny_sets import class_folders, png, put

from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.benchmarks.base import Benchmark, Candidates, Side
from jaxvl.evals.benchmarks.files import ImageFiles, Values
from jaxvl.evals.benchmarks.scoring import score
from jaxvl.evals.prompts import class_vectors
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
IMAGES = unit(64, 16, seed=5)
TEXTS = unit(64, 16, seed=6)
MODEL = oracle.Model(IMAGES, TEXTS)
TEMPLATES = ("a photo of {}.", "{}, {} and {}")


def vectors(model):
    return lambda names, templates: class_vectors(model.texts, names, templates)


def run(benchmark, mesh=MESH, images=IMAGES, texts=TEXTS):
    model = encoders(mesh, images, texts)
    return score(benchmark, model, vectors(model))


def files(folder, numbers, **values):
    for i, k in enumerate(numbers):
        put(folder, f"{i}.png", k)
    return ImageFiles("toy", folder, [f"{i}.png" for i in range(len(numbers))], values)


def classes(n):
    return ClassSet({"en": tuple(f"word {k}" for k in range(n))}, ("{}",))


def classification(folder, numbers, labels, n, **more):
    source = files(
        folder, numbers, label=Values(Column("class"), np.array(labels)), **more.pop("values", {})
    )
    columns = {"image": "image", **{key: key for key in source.columns}}
    return Benchmark("toy", "classification", source, columns, "acc1", classes(n), **more)


@pytest.mark.parametrize("n", [3, 20])
def test_classification(tmp_path, n):
    rng = np.random.default_rng(n)
    numbers = rng.integers(0, 64, 50)
    labels = rng.integers(0, n, 50)
    got = run(classification(tmp_path, numbers, labels, n)).metrics
    theirs = oracle.classification(MODEL, numbers, labels, [f"word {k}" for k in range(n)], ["{c}"])
    for name in ("acc1", "mean_per_class_recall"):
        assert got[name] == pytest.approx(theirs[name], abs=1e-6)
    assert (
        got["acc5"] is None and np.isnan(theirs["acc5"])
        if n < 5
        else got["acc5"] == pytest.approx(theirs["acc5"], abs=1e-6)
    )
    assert got["acc1_random_ties"] == pytest.approx(got["acc1"]) and got[
        "acc1_chance"
    ] == pytest.approx(1 / n)


def test_prompt_ensembles_equal_theirs():
    """Prompts of one class differ, and so do their rows."""
    table = np.random.default_rng(0).normal(size=(97, 8)).astype(np.float32)
    place = lambda text: sum(map(ord, text)) % 97
    encode = lambda texts: table[[place(text) for text in texts]]

    class Model:
        encode_text = staticmethod(lambda numbers: oracle.torch.tensor(table)[numbers])

    names = ["cat", "tabby cat", "dog"]
    templates = ["a photo of {}.", "{}!", "many {} in a photo"]
    ours = class_vectors(encode, names, templates)
    tokenize = lambda texts: oracle.torch.tensor([place(text) for text in texts])
    theirs = oracle.zeroshot_classification.zero_shot_classifier(
        Model(), tokenize, names, [t.replace("{}", "{c}") for t in templates], "cpu", amp=False
    )
    np.testing.assert_allclose(ours, theirs.numpy().T, atol=1e-6)


def test_multilabel(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.permutation(40)
    targets = rng.integers(0, 2, (40, 7))
    targets[:, 3] = 0  # a class without any picture
    source = files(tmp_path, numbers, labels=Values(Column("array"), list(targets)))
    benchmark = Benchmark(
        "toy",
        "multilabel",
        source,
        {"image": "image", "labels": "labels"},
        "mean_average_precision",
        classes(7),
    )
    theirs = oracle.classification(
        MODEL, numbers, targets, [f"word {k}" for k in range(7)], ["{c}"]
    )
    assert run(benchmark).metrics["mean_average_precision"] == pytest.approx(
        theirs["mean_average_precision"], abs=1e-6
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_retrieval(tmp_path, seed):
    """Images have one to five captions."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(64)[:30]
    order = iter(rng.permutation(64).tolist() * 2)
    captions = [[f"caption {next(order)}" for _ in range(1 + k % 4)] for k in range(30)]
    benchmark = retrieval(tmp_path, numbers, captions)
    got = run(benchmark)
    theirs = oracle.retrieval(MODEL, numbers, captions)
    for name, value in theirs.items():
        assert got.metrics[name] == pytest.approx(value, abs=1e-6), name
    assert got.metrics["mean_recall@1"] == pytest.approx(
        (theirs["image_retrieval_recall@1"] + theirs["text_retrieval_recall@1"]) / 2, abs=1e-6
    )
    assert run(benchmark, ONE).metrics == got.metrics


def retrieval(folder, numbers, captions):
    source = files(folder, numbers, captions=Values(Column("texts"), captions))
    return Benchmark(
        "toy", "retrieval", source, {"image": "image", "captions": "captions"}, "mean_recall@1"
    )


def test_ties_are_told_apart(tmp_path):
    """An encoder that gives everything one row: by the first of equal ones class 0 is always right,
    by random order it is chance."""
    same = np.repeat(unit(1, 16), 64, axis=0)
    got = run(
        classification(tmp_path / "a", [1, 2, 3, 4], [0, 0, 1, 2], 3), images=same, texts=same
    ).metrics
    assert got["acc1"] == 0.5 and got["acc1_random_ties"] == pytest.approx(1 / 3)
    got = run(
        retrieval(tmp_path / "b", list(range(8)), [[f"c {k}"] for k in range(8)]),
        images=same,
        texts=same,
    ).metrics
    assert got["image_retrieval_recall@1"] == pytest.approx(1 / 8)
    assert got["image_retrieval_recall@5_random_ties"] == pytest.approx(5 / 8)


def pairs(folder, numbers, captions, groups=None):
    values = {"captions": Values(Column("texts"), captions)}
    if groups is not None:
        values["group"] = Values(Column("int"), np.array(groups))
    source = files(folder, numbers, **values)
    return Benchmark(
        "toy", "pairs", source, {"image": "image", **{key: key for key in values}}, "acc"
    )


def test_sugar_crepe(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 64, 40)
    captions = [[f"right {rng.integers(64)}", f"wrong {rng.integers(64)}"] for _ in range(40)]
    got = run(pairs(tmp_path, numbers, captions)).metrics
    theirs = oracle.selection(MODEL, numbers[:, None], captions)
    assert {name: got[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    assert 0.2 < got["acc"] < 0.8 and got["image_acc"] == 1 and got["acc_chance"] == 0.5


def test_winoground(tmp_path):
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 64, 80)
    captions = [f"caption {rng.integers(64)}" for _ in range(80)]
    got = run(pairs(tmp_path, numbers, [[text] for text in captions], np.arange(80) // 2)).metrics
    theirs = oracle.selection(
        MODEL, numbers.reshape(-1, 2), np.array(captions).reshape(-1, 2).tolist()
    )
    assert {name: got[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    assert 0 < got["acc"] < got["text_acc"]


def test_bad_pictures_are_left_out_and_counted(tmp_path):
    """Of ten pictures one is none, one is missing and one has no label: the rest count as without
    them."""
    numbers = np.arange(10)
    benchmark = classification(tmp_path, numbers, [k % 4 for k in range(10)], 4)
    (tmp_path / "3.png").write_bytes(b"<html>")
    (tmp_path / "6.png").unlink()
    labels = [k % 4 for k in range(10)]
    labels[8] = None
    benchmark.source._values["label"] = Values(Column("class"), labels)
    got = run(benchmark)
    left = [0, 1, 2, 4, 5, 7, 9]
    theirs = oracle.classification(
        MODEL, left, [k % 4 for k in left], [f"word {k}" for k in range(4)], ["{c}"]
    )
    assert got.images == 7 and got.metrics["acc1"] == pytest.approx(theirs["acc1"])
    assert (
        sum(got.skipped.values()) == 3
        and got.skipped["no label"] == 1
        and got.skipped["record cannot be read"] == 1
    )


def test_an_instance_of_pairs_counts_as_a_whole(tmp_path):
    benchmark = pairs(tmp_path, list(range(6)), [[f"c {k}"] for k in range(6)], np.arange(6) // 2)
    (tmp_path / "3.png").write_bytes(b"")
    got = run(benchmark)
    assert got.images == 4 and got.skipped["instance is not whole"] == 1


def test_nothing_left(tmp_path):
    benchmark = classification(tmp_path, [0, 1], [0, 1], 2)
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 pictures can be encoded"):
        run(benchmark)


@pytest.mark.parametrize("bad, refused", [(9, False), (10, True)])
def test_figures_of_a_part_are_none_of_the_set(tmp_path, bad, refused):
    """Of fewer than 1,000 pictures 9 may be bad."""
    benchmark = classification(tmp_path, [k % 64 for k in range(40)], [k % 3 for k in range(40)], 3)
    for i in range(bad):
        (tmp_path / f"{i}.png").write_bytes(b"<html>")
    if refused:
        with pytest.raises(
            DataError,
            match="toy: 10 of 40 pictures cannot be used .*which leaves a part of the set",
        ):
            run(benchmark)
    else:
        assert run(benchmark).images == 31


def test_figures_of_datacomp(tmp_path):
    """Regions 0, 1 and 5; 5 is "Other", which FMoW leaves out and the others do not."""
    numbers = np.arange(12)
    labels = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    regions = [np.array([r, 9]) for r in (0, 0, 0, 1, 1, 1, 5, 5, 5, 5, 5, 5)]
    values = {"metadata": Values(Column("array"), regions)}
    scores = IMAGES[:12] @ TEXTS[:6].T
    top = np.argsort(-scores, axis=1)
    right = top[:, 0] == labels
    five = (top[:, :5] == labels[:, None]).any(1)
    places = np.array([r[0] for r in regions])
    worst = lambda hit, out=(): min(hit[places == r].mean() for r in (0, 1, 5) if r not in out)
    expected = {
        "acc_worst_region": worst(right, (5,)),
        "acc_wg": worst(right),
        "acc_top5_wg": worst(five),
    }
    for name, value in expected.items():
        benchmark = classification(tmp_path, numbers, labels, 6, values=values, figures=name)
        assert run(benchmark).metrics[name] == pytest.approx(value), name


def test_candidates(tmp_path):
    """Queries of text, picture and both among their own candidates; the figures against a loop in
    float64."""
    rng = np.random.default_rng(0)
    source = files(tmp_path, range(20))
    sides = [Side(image=i) for i in range(20)] + [Side(text=f"word {k}") for k in range(20)]
    sides += [Side(text=f"word {k + 30}", image=k) for k in range(10)]
    queries = rng.integers(0, len(sides), 30)
    candidates = [rng.permutation(len(sides))[: 5 + k % 3] for k in range(30)]
    right = [np.arange(len(of)) == 0 for of in candidates]
    table = Candidates(tuple(sides), queries, tuple(candidates), tuple(right))
    got = run(Benchmark("toy", "candidates", source, {"image": "image"}, "acc1", candidates=table))

    def row(side):
        total = np.zeros(16)
        if side.text is not None:
            total += TEXTS[int(side.text.split()[1])]
        if side.image is not None:
            total += IMAGES[side.image]
        return total / np.linalg.norm(total)

    hits = [
        np.argmax([row(sides[c]) @ row(sides[q]) for c in of]) == 0
        for q, of in zip(queries, candidates)
    ]
    assert got.metrics["acc1"] == pytest.approx(np.mean(hits)) and got.images == 30
    assert got.metrics["acc1_chance"] == pytest.approx(np.mean([1 / len(of) for of in candidates]))
    (tmp_path / "4.png").unlink()
    again = run(
        Benchmark("toy", "candidates", source, {"image": "image"}, "acc1", candidates=table)
    )
    bad = {i for i, side in enumerate(sides) if side.image == 4}
    lost = [q in bad or of[0] in bad for q, of in zip(queries, candidates)]
    assert any(lost) and again.skipped["query is not whole"] == sum(lost)


def test_a_benchmark_without_templates_takes_the_80(tmp_path):
    folder = class_folders(tmp_path / "sets", ["a", "b"], each=1, suffix=".png")
    source = ImageFiles(
        "toy",
        folder,
        ["a/a_0.png", "b/b_0.png"],
        {"label": Values(Column("class"), np.array([0, 1]))},
    )
    benchmark = Benchmark(
        "toy",
        "classification",
        source,
        {"image": "image", "label": "label"},
        "acc1",
        ClassSet({"en": ("0", "1")}),
    )
    seen = []
    model = encoders(MESH, IMAGES, TEXTS)

    def remember(names, templates):
        seen.append((names, templates))
        return class_vectors(model.texts, names, templates)

    score(benchmark, model, remember)
    score(benchmark, model, remember, ("{}!",))
    assert (
        len(seen[0][1]) == 80 and seen[0][1][0] == "a bad photo of a {}." and seen[1][1] == ("{}!",)
    )
    assert png(0) == (folder / "a/a_0.png").read_bytes()


def test_languages_of_one_set_encode_its_pictures_once(tmp_path, monkeypatch):
    reads = []
    real = ImageFiles._read_picture
    monkeypatch.setattr(
        ImageFiles, "_read_picture", lambda self, file: reads.append(file) or real(self, file)
    )
    sources = [
        files(
            tmp_path,
            range(6),
            captions=Values(Column("texts"), [[f"{lang} {k}"] for k in range(6)]),
        )
        for lang in ("en", "de")
    ]
    model = encoders(ONE, IMAGES, TEXTS)
    for source, language in zip(sources, ("en", "de")):
        columns = {"image": "image", "captions": "captions"}
        benchmark = Benchmark(
            "toy",
            "retrieval",
            source,
            columns,
            "mean_recall@1",
            language=language,
            pictures=source.pictures,
        )
        score(benchmark, model, vectors(model))
    assert sorted(reads) == [f"{k}.png" for k in range(6)]
