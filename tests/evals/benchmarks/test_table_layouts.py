"""Benchmarks as Parquet and Arrow tables, written by pyarrow."""

import json
import pickle

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from known_answers import encoders, unit
from tiny_sets import number_of, numbers_of, png, put

from jaxvl.data.records import BadRecord, DataError
from jaxvl.evals.benchmarks import hugging_face, mmeb
from jaxvl.evals.benchmarks.scoring import score
from jaxvl.evals.benchmarks.tables import Tables
from jaxvl.sharding.mesh import make_mesh

ONE = make_mesh(devices=jax.devices()[:1])
IMAGES = unit(64, 16, seed=5)
TEXTS = unit(64, 16, seed=6)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def struct(k):
    return {"bytes": png(k), "path": f"{k}.png"}


def run(benchmark):
    return score(benchmark, encoders(ONE, IMAGES, TEXTS), None)


def winoground(rows=5):
    columns = {
        f"image_{i}": pa.array([struct(2 * k + i) for k in range(rows)], IMAGE) for i in (0, 1)
    }
    columns |= {f"caption_{i}": [f"caption {2 * k + i}" for k in range(rows)] for i in (0, 1)}
    return pa.table({"id": list(range(rows)), **columns})


def as_parquet(folder, table, name="test-00000-of-00001.parquet", **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, **options)


def as_stream(folder, table, name="winoground-test.arrow"):
    folder.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(folder / name), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        for batch in table.to_batches(2):
            writer.write_batch(batch)


def as_file(folder, table, name="test.arrow"):
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "write", [lambda f, t: as_parquet(f, t, row_group_size=2), as_stream, as_file]
)
def test_winoground_in_any_container(tmp_path, write):
    write(tmp_path / "winoground", winoground())
    (found,) = hugging_face.find(tmp_path / "winoground")
    benchmark = found.open()
    assert found.name == "winoground" and numbers_of(benchmark.source) == list(range(10))
    assert benchmark.source.column("captions").tolist() == [[f"caption {k}"] for k in range(10)]
    assert benchmark.source.column("group").tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert numbers_of(pickle.loads(pickle.dumps(benchmark.source))) == list(range(10))
    scores = TEXTS[:10].astype(np.float64) @ IMAGES[:10].T
    right = lambda s: [
        s[k, k] > s[k, k + 1] and s[k + 1, k + 1] > s[k + 1, k] for k in range(0, 10, 2)
    ]
    got = run(benchmark).metrics
    assert got["image_acc"] == pytest.approx(np.mean(right(scores))) and got[
        "text_acc"
    ] == pytest.approx(np.mean(right(scores.T)))


def test_rows_of_several_files_stand_in_order(tmp_path):
    for i in range(3):
        as_parquet(
            tmp_path, winoground().slice(i, 2), f"test-{i:05d}-of-00003.parquet", row_group_size=1
        )
    as_parquet(tmp_path, winoground(), "train-00000-of-00001.parquet")
    benchmark = hugging_face.find(tmp_path)[0].open()
    assert numbers_of(benchmark.source) == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7], (
        "and the training split is left alone"
    )


def test_captions_of_datacomp(tmp_path):
    folder = tmp_path / "hf_cache" / "nlphuji___flickr_1k_test_image_text_retrieval" / "default"
    columns = {
        "image": pa.array([struct(k) for k in range(3)], IMAGE),
        "caption": [["word 1", "word 2"], ["word 3"], ["word 4"]],
    }
    as_stream(folder, pa.table({**columns, "filename": ["a", "b", "c"]}), "flickr-test.arrow")
    (found,) = hugging_face.find(folder)
    benchmark = found.open()
    assert (found.name, benchmark.task) == ("flickr30k", "retrieval") and numbers_of(
        benchmark.source
    ) == [0, 1, 2]
    assert benchmark.source.column("captions").tolist() == columns["caption"]


def labelled(labels, names=None):
    table = pa.table(
        {"image": pa.array([struct(k) for k in range(len(labels))], IMAGE), "label": labels}
    )
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return (
        table
        if names is None
        else table.replace_schema_metadata({"huggingface": json.dumps(features)})
    )


def test_classes_as_datasets_writes_them(tmp_path):
    """The validation split, for there is no test split; -1 is no label, as in the hub's unlabelled
    splits."""
    folder = tmp_path / "beans" / "data"
    as_parquet(
        folder,
        labelled([1, 0, -1, 2], ["leaf_spot", "rust", "healthy"]),
        "validation-00000-of-00001.parquet",
    )
    as_parquet(
        folder, labelled([1], ["leaf_spot", "rust", "healthy"]), "train-00000-of-00001.parquet"
    )
    (found,) = hugging_face.find(folder)
    benchmark = found.open()
    assert found.name == "beans" and benchmark.classes.names["en"] == (
        "leaf spot",
        "rust",
        "healthy",
    )
    assert benchmark.source.column("label").tolist() == [1, 0, None, 2] and numbers_of(
        benchmark.source
    ) == [0, 1, 2, 3]


def test_imagenet_of_the_hub_has_the_names_of_clip(tmp_path):
    folder = tmp_path / "imagenet-1k" / "data"
    as_parquet(
        folder,
        labelled([999, 0], [f"synset {k}" for k in range(1000)]),
        "validation-00000-of-00014.parquet",
    )
    (found,) = hugging_face.find(folder)
    classes = found.open().classes
    assert (
        found.name == "imagenet1k"
        and classes.names["en"][0] == "tench"
        and len(classes.templates) == 80
    )


@pytest.mark.parametrize(
    "labels, names, says",
    [
        ([0, 1], None, "does not tell what the numbers in its column 'label' mean"),
        ([0, 2], ["a", "b"], "label 2 has no name; the table names 2 classes"),
        ([-1], ["a"], "no record has a label"),
    ],
)
def test_labels_without_names(tmp_path, labels, names, says):
    as_parquet(tmp_path, labelled(labels, names))
    with pytest.raises(DataError, match=says):
        hugging_face.find(tmp_path)[0].open()


def test_a_training_split_alone(tmp_path):
    as_parquet(tmp_path, winoground(), "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="holds a training split alone"):
        hugging_face.find(tmp_path)


def test_winogavil_against_its_authors_evaluation(tmp_path):
    """As their script: the cue with an article, as many pictures as there are associations, Jaccard
    by number of candidates."""
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    rows = []
    cues = []
    expected = {}
    for k in range(20):
        n = (5, 6, 10, 12)[k % 4]
        numbers = rng.permutation(64)[:n]
        associated = rng.permutation(n)[: 2 + k % 3]
        cues.append(f"Apple {k}" if k % 2 else f"Tree {k}")
        rows.append(
            {
                "candidates": [f"name {i}" for i in numbers],
                "associations": [f"name {numbers[i]}" for i in associated],
                "candidate_images": [struct(i) for i in numbers],
            }
        )
        logits = TEXTS[k] @ IMAGES[numbers].T
        truth = np.isin(np.arange(n), associated)
        chosen = np.isin(np.arange(n), np.argsort(logits)[-len(associated) :])
        expected.setdefault(n, []).append(jaccard_score(truth, chosen))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["candidate_images"] = pa.array(columns["candidate_images"], pa.list_(IMAGE))
    as_parquet(tmp_path / "winogavil", pa.table({"cue": cues, **columns}))
    benchmark = hugging_face.find(tmp_path / "winogavil")[0].open()
    assert (
        benchmark.candidates.sides[0].text == "A tree 0"
        and benchmark.main_metric == "jaccard_score_10-12"
    )
    got = run(benchmark).metrics
    assert got["jaccard_score_10-12"] == pytest.approx(np.mean(expected[10] + expected[12]))
    assert got["jaccard_score_5"] == pytest.approx(np.mean(expected[5]))
    assert got["avg_jaccard_score"] == pytest.approx(np.mean(sum(expected.values(), [])))


def test_mmeb(tmp_path):
    """Image to texts, and text with image to images; the first candidate is the right one."""
    for k in range(12):
        put(tmp_path, f"eval_images/set/{k}.jpg", k)
    marked = "<|image_1|>\nFind a text of {}."
    first = {
        "qry_text": [marked.format(k + 20) for k in range(4)],
        "qry_img_path": [f"set/{k}.jpg" for k in range(4)],
        "tgt_text": [[f"word {(7 * k + j) % 60}" for j in range(5)] for k in range(4)],
        "tgt_img_path": [[""] * 5] * 4,
    }
    second = {
        "qry_text": [f"word {k}" for k in range(4)],
        "qry_img_path": [""] * 4,
        "tgt_text": [["<|image_1|>"] * 3] * 4,
        "tgt_img_path": [[f"set/{(k + j) % 12}.jpg" for j in range(3)] for k in range(4)],
    }
    as_parquet(tmp_path / "HatefulMemes", pa.table(first))
    as_parquet(tmp_path / "VisDial", pa.table(second))
    unit_of = lambda row: row / np.linalg.norm(row)
    fused = [unit_of(IMAGES[k] + TEXTS[10 * 0 + k + 20]) for k in range(4)]
    hits = [
        np.argmax([TEXTS[(7 * k + j) % 60] @ fused[k] for j in range(5)]) == 0 for k in range(4)
    ]
    (found,) = mmeb.find(tmp_path / "HatefulMemes")
    assert found.name == "mmeb/HatefulMemes"
    assert found.open().candidates.sides[0] == ("Find a text of 20.", 0)
    assert run(found.open()).metrics["acc1"] == pytest.approx(np.mean(hits))
    hits = [np.argmax([IMAGES[(k + j) % 12] @ TEXTS[k] for j in range(3)]) == 0 for k in range(4)]
    benchmark = mmeb.find(tmp_path / "VisDial")[0].open()
    assert (
        run(benchmark).metrics["acc1"] == pytest.approx(np.mean(hits))
        and len(benchmark.source) == 6
    )


def test_a_row_without_bytes_is_a_bad_record(tmp_path):
    table = winoground().set_column(
        1,
        "image_0",
        pa.array([struct(0), None, {"bytes": None, "path": "a"}, struct(6), struct(8)], IMAGE),
    )
    as_parquet(tmp_path, table)
    benchmark = hugging_face.find(tmp_path)[0].open()
    assert number_of(benchmark.source[0]["image"]) == 0
    for i in (2, 4):
        with pytest.raises(
            BadRecord, match="record is incomplete: .* has no bytes of a picture in 'image_0'"
        ):
            benchmark.source[i]
    got = run(benchmark)
    assert got.skipped["instance is not whole"] == 2 and got.images == 6


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda t: t.set_column(3, "caption_0", pa.array(["a", None, "b", "c", "d"])),
            "row 1 has no text in 'caption_0'",
        ),
        (
            lambda t: t.set_column(3, "caption_0", pa.array([1, 2, 3, 4, 5])),
            "row 0 has no text in 'caption_0'",
        ),
    ],
)
def test_columns_of_another_kind(tmp_path, change, says):
    as_parquet(tmp_path, change(winoground()))
    with pytest.raises(DataError, match=says):
        hugging_face.find(tmp_path)[0].open()


@pytest.mark.parametrize("name", ["test.parquet", "test.arrow"])
@pytest.mark.parametrize("keep", [0, 7, 200, 1000])
def test_files_that_are_cut_short(tmp_path, name, keep):
    (as_parquet if name.endswith("parquet") else as_file)(tmp_path, winoground(), name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name}: cannot be read as"):
        Tables([path])


def test_files_of_different_columns(tmp_path):
    as_parquet(tmp_path, winoground(), "test-0.parquet")
    as_parquet(tmp_path, winoground().drop_columns(["id"]), "test-1.parquet")
    with pytest.raises(DataError, match="test-1.parquet: has other columns than test-0.parquet"):
        hugging_face.find(tmp_path)[0].open()
