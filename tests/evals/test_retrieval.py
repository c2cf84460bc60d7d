"""Retrieval over a corpus with known answers."""

import jax
import numpy as np
import pytest
from known_answers import Records, Toy, encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS
from jaxvl.evals.retrieval import Retrieval
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 16)
RATES = [f"{d}_r@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]


def test_perfect_encoder():
    evaluator = Retrieval(toy(range(50)), text="name/en")
    got = evaluator.run(encoders(MESH, TABLE, TABLE)).metrics
    assert set(got) == set(evaluator.figures) - {"skipped/*"}
    assert [got[k] for k in RATES] == [1.0] * 6 and got["mean_recall"] == 1.0
    assert got["i2t_median_rank"] == got["t2i_median_rank"] == 1.0
    assert (got["images"], got["captions"], got["i2t_r@1_chance"]) == (
        50,
        50,
        pytest.approx(1 / 50),
    )


def test_all_equal_encoder_is_at_chance():
    same = np.repeat(unit(1, 16), 64, axis=0)
    got = Retrieval(toy(range(50)), text="name/en").run(encoders(MESH, same, same)).metrics
    for d in ("i2t", "t2i"):
        np.testing.assert_allclose(
            [got[f"{d}_r@{k}"] for k in (1, 5, 10)], [1 / 50, 5 / 50, 10 / 50], atol=1e-9
        )


def test_random_encoder_is_near_chance():
    got = (
        Retrieval(toy(range(64)), text="name/en")
        .run(encoders(MESH, TABLE, unit(64, 16, seed=1)))
        .metrics
    )
    for key in RATES:
        p = int(key.split("@")[1]) / 64
        assert abs(got[key] - p) < 4 * np.sqrt(p * (1 - p) / 64)


def brute_force(images, texts, right, k):
    """Recall at k over scores without ties: a loop over queries, float64."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    return np.mean([right[q][np.argsort(-scores[q])[:k]].any() for q in range(len(scores))])


@pytest.mark.parametrize("merge", [False, True])
def test_several_captions_per_image_and_images_per_caption(merge):
    """Image q has the captions of its own and of class q // 2 * 2; equal texts are right answers
    wherever they stand."""
    own = [[f"word {q}", [f"WORD  {q // 2 * 2}", f"word {(q + 20) % 30}"]] for q in range(30)]
    source = Toy(Records([(q, {"en": own[q]}) for q in range(30)]))
    table = unit(64, 16, seed=5)
    got = (
        Retrieval(source, text=("name/en", "keywords/en"), merge=merge)
        .run(encoders(MESH, TABLE, table))
        .metrics
    )
    numbers = [list(dict.fromkeys([q, (q + 20) % 30, q // 2 * 2])) for q in range(30)]
    # "word 4" and "WORD  4" are two occurrences of one caption, as the loader of captions keeps
    # texts apart by spelling.
    listed = [[q, q // 2 * 2, (q + 20) % 30] for q in range(30)]
    flat = (
        sorted({k for row in listed for k in row}) if merge else [k for row in listed for k in row]
    )
    right = np.array([[k in numbers[q] for k in flat] for q in range(30)])
    for k in (1, 5, 10):
        unique = table[flat] if merge else None
        if (
            merge
        ):  # without merging equal captions tie, which `test_ranking` covers; merged ones do not
            assert got[f"i2t_r@{k}"] == pytest.approx(brute_force(TABLE[:30], unique, right, k))
        assert got[f"t2i_r@{k}"] == pytest.approx(brute_force(table[flat], TABLE[:30], right.T, k))
    assert got["captions"] == len(flat)


def test_duplicate_captions_are_scored_by_caption_not_by_position():
    """Four images of every class, all with the same caption: the encoder is perfect, so is the
    score."""
    got = (
        Retrieval(toy([k for k in range(12) for _ in range(4)]), text="name/en")
        .run(encoders(MESH, TABLE, TABLE))
        .metrics
    )
    assert [got[k] for k in RATES] == [1.0] * 6
    assert got["i2t_r@1_chance"] == pytest.approx(4 / 48)


def test_eight_devices_equal_one():
    evaluator = Retrieval(toy(range(37)), text="name/en")
    eight, one = (
        evaluator.run(encoders(mesh, TABLE, unit(64, 16, seed=1))) for mesh in (MESH, ONE)
    )
    assert eight.metrics == one.metrics
    assert [[i.text for i in r.items] for r in eight.gallery] == [
        [i.text for i in r.items] for r in one.gallery
    ]


def test_bad_images_and_missing_captions_are_counted():
    source = toy(range(30), broken=(4,), unreadable=(5,))
    source.records.rows[7] = (7, {"de": ["Wort 7", []]})
    got = Retrieval(source, text="name/en").run(encoders(MESH, TABLE, TABLE)).metrics
    skipped = {k: v for k, v in got.items() if k.startswith("skipped/")}
    assert skipped == {
        "skipped/record cannot be read": 1,
        "skipped/image cannot be decoded": 1,
        "skipped/no caption": 1,
    }
    assert got["images"] == got["captions"] == 27 and got["i2t_r@1"] == 1


def test_gallery():
    rows = (
        Retrieval(toy(range(40)), text="name/en", gallery=6)
        .run(encoders(MESH, TABLE, TABLE))
        .gallery
    )
    assert [r.group for r in rows] == ["Image to text"] * 6 + ["Text to image"] * 6
    for row in rows:
        assert len(row.items) == 5 and row.rank == 1
        assert [i.right for i in row.items] == [True] + [False] * 4
        assert [i.score for i in row.items] == sorted((i.score for i in row.items), reverse=True)
        assert row.items[0].text == row.text
        image_query = row.group == "Image to text"
        assert (row.image is not None) == image_query
        assert all((i.image is None) == image_query for i in row.items)
    assert (
        Retrieval(toy(range(4)), text="name/en", gallery=0)
        .run(encoders(MESH, TABLE, TABLE))
        .gallery
        == []
    )


def test_another_column_and_a_template():
    evaluator = Retrieval(toy(range(20)), text="name/de", template="ein Bild: {}", gallery=1)
    result = evaluator.run(encoders(MESH, TABLE, TABLE))
    assert result.metrics["i2t_r@1"] == 1 and result.gallery[0].text.startswith("Wort")


def test_groups_say_what_is_right_whatever_the_texts():
    """Captions of class k at another place are right as well, and equal captions of another group
    are not."""
    rows = [(k, {"en": [f"word {k}", [f"word {(k + 1) % 20}"]]}) for k in range(20)]
    source = Toy(Records(rows))
    options = dict(text=("name/en", "keywords/en"), gallery=2)
    run = lambda **more: Retrieval(source, **options, **more).run(encoders(ONE, TABLE, TABLE))
    by_text = run().metrics
    by_group = run(group="class_label").metrics
    assert by_text["i2t_r@1"] == by_text["t2i_r@1"] == 1
    assert by_text["t2i_r@1_chance"] == pytest.approx(2 / 20) and by_group[
        "t2i_r@1_chance"
    ] == pytest.approx(1 / 20)
    # Of the two equal captions that an image is nearest to, one is of its own group: right with
    # probability 1/2.
    assert by_group["i2t_r@1"] == pytest.approx(1 / 2) and by_group["t2i_r@1"] == pytest.approx(
        1 / 2
    )
    both = run(group="parity").metrics
    assert both["i2t_r@1_chance"] == both["t2i_r@1_chance"] == pytest.approx(1 / 2)
    # Merged, the caption belongs to both groups: each of its two images is right, and it for both.
    merged = run(group="class_label", merge=True).metrics
    assert merged["captions"] == 20 and merged["i2t_r@1"] == merged["t2i_r@1"] == 1
    assert merged["i2t_r@1_chance"] == pytest.approx(2 / 20)


def test_texts_are_read_without_pictures_and_pictures_without_texts():
    source = toy(range(20))
    evaluator = Retrieval(source, text=("name/en", "keywords/en"), group="parity", gallery=2)
    known = encoders(ONE, TABLE, TABLE)
    evaluator.check(known)
    evaluator.run(known)
    assert set(source.records.asked) == {
        ("image",),
        ("name/en",),
        ("keywords/en",),
        ("name/en", "keywords/en"),
        ("parity",),
    }


def test_a_column_of_pictures_by_another_name():
    source = toy(range(20))
    source.records.columns["photo"] = source.records.columns.pop("image")
    source.records.read = lambda i, columns: {
        "photo" if name == "image" else name: value
        for name, value in Records.read(
            source.records, i, ["image" if name == "photo" else name for name in columns]
        ).items()
    }
    evaluator = Retrieval(source, text="name/en", image="photo", gallery=1)
    evaluator.check(encoders(ONE, TABLE, TABLE))
    result = evaluator.run(encoders(ONE, TABLE, TABLE))
    assert result.metrics["i2t_r@1"] == 1 and result.gallery[0].image


def test_errors():
    empty = toy(range(4))
    for row in range(4):
        empty.records.rows[row] = (row, {})
    with pytest.raises(DataError, match=r"toy has no image with a caption \(name/en\)"):
        Retrieval(empty, text="name/en").run(encoders(ONE, TABLE, TABLE))
    with pytest.raises(
        DataError, match="no image that can be encoded.*records: 2, skipped: .*decoded.: 2"
    ):
        Retrieval(toy(range(2), broken=(0, 1)), text="name/en").run(encoders(ONE, TABLE, TABLE))
    with pytest.raises(ConfigError, match="template"):
        Retrieval(toy(range(4)), template="no place")
    with pytest.raises(ConfigError, match="every"):
        Retrieval(toy(range(4)), every=-1)
    assert set(EVALUATORS) > {"captioning", "retrieval", "zero_shot"}
