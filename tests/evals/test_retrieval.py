"""Retrieval over a corpus with known answers."""

import jax
import numpy as np
import pytest
from known_answers import Corpus, Source, corpus, encoders, unit

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
    evaluator = Retrieval(corpus(range(50)), "test")
    got = evaluator.run(encoders(MESH, TABLE, TABLE)).metrics
    assert set(got) == set(evaluator.figures) - {"skipped/*"}
    assert [got[k] for k in RATES] == [1.0] * 6 and got["mean_recall"] == 1.0
    assert got["i2t_median_rank"] == got["t2i_median_rank"] == 1.0
    assert (got["images"], got["captions"], got["i2t_r@1_chance"]) == (50, 50, pytest.approx(1 / 50))


def test_all_equal_encoder_is_at_chance():
    same = np.repeat(unit(1, 16), 64, axis=0)
    got = Retrieval(corpus(range(50)), "test").run(encoders(MESH, same, same)).metrics
    for d in ("i2t", "t2i"):
        np.testing.assert_allclose([got[f"{d}_r@{k}"] for k in (1, 5, 10)], [1 / 50, 5 / 50, 10 / 50], atol=1e-9)


def test_random_encoder_is_near_chance():
    got = Retrieval(corpus(range(64)), "test").run(encoders(MESH, TABLE, unit(64, 16, seed=1))).metrics
    for key in RATES:
        p = int(key.split("@")[1]) / 64
        assert abs(got[key] - p) < 4 * np.sqrt(p * (1 - p) / 64)


def brute_force(images, texts, right, k):
    """Recall at k over scores without ties: a loop over queries, float64."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    return np.mean([right[q][np.argsort(-scores[q])[:k]].any() for q in range(len(scores))])


@pytest.mark.parametrize("merge", [False, True])
def test_several_captions_per_image_and_images_per_caption(merge):
    """Image q has the captions of its own and of class q // 2 * 2; equal texts are right answers wherever they stand."""
    own = [[f"word {q}", [f"WORD  {q // 2 * 2}", f"word {(q + 20) % 30}"]] for q in range(30)]
    toy = Corpus({"test": Source([(q, {"en": own[q]}) for q in range(30)])}, {"en": []})
    table = unit(64, 16, seed=5)
    got = Retrieval(toy, "test", captions="all", merge=merge).run(encoders(MESH, TABLE, table)).metrics
    numbers = [list(dict.fromkeys([q, (q + 20) % 30, q // 2 * 2])) for q in range(30)]
    # "word 4" and "WORD  4" are two occurrences of one caption, as the loader of captions keeps texts apart by spelling.
    listed = [[q, q // 2 * 2, (q + 20) % 30] for q in range(30)]
    flat = sorted({k for row in listed for k in row}) if merge else [k for row in listed for k in row]
    right = np.array([[k in numbers[q] for k in flat] for q in range(30)])
    for k in (1, 5, 10):
        unique = table[flat] if merge else None
        if merge:  # without merging equal captions tie, which `test_ranking` covers; merged ones do not
            assert got[f"i2t_r@{k}"] == pytest.approx(brute_force(TABLE[:30], unique, right, k))
        assert got[f"t2i_r@{k}"] == pytest.approx(brute_force(table[flat], TABLE[:30], right.T, k))
    assert got["captions"] == len(flat)


def test_duplicate_captions_are_scored_by_caption_not_by_position():
    """Four images of every class, all with the same caption: the encoder is perfect, so is the score."""
    got = Retrieval(corpus([k for k in range(12) for _ in range(4)]), "test").run(encoders(MESH, TABLE, TABLE)).metrics
    assert [got[k] for k in RATES] == [1.0] * 6
    assert got["i2t_r@1_chance"] == pytest.approx(4 / 48)


def test_eight_devices_equal_one():
    toy = Retrieval(corpus(range(37)), "test")
    eight, one = (toy.run(encoders(mesh, TABLE, unit(64, 16, seed=1))) for mesh in (MESH, ONE))
    assert eight.metrics == one.metrics
    assert [[i.text for i in r.items] for r in eight.gallery] == [[i.text for i in r.items] for r in one.gallery]


def test_bad_images_and_missing_captions_are_counted():
    toy = corpus(range(30), broken=(4,), unreadable=(5,))
    toy.split("test").rows[7] = (7, {"de": ["Wort 7", []]})
    got = Retrieval(toy, "test").run(encoders(MESH, TABLE, TABLE)).metrics
    skipped = {k: v for k, v in got.items() if k.startswith("skipped/")}
    assert skipped == {"skipped/record cannot be read": 1, "skipped/image cannot be decoded": 1, "skipped/no caption in locale en": 1}
    assert got["images"] == got["captions"] == 27 and got["i2t_r@1"] == 1


def test_gallery():
    rows = Retrieval(corpus(range(40)), "test", gallery=6).run(encoders(MESH, TABLE, TABLE)).gallery
    assert [r.group for r in rows] == ["Image to text"] * 6 + ["Text to image"] * 6
    for row in rows:
        assert len(row.items) == 5 and row.rank == 1
        assert [i.right for i in row.items] == [True] + [False] * 4
        assert [i.score for i in row.items] == sorted((i.score for i in row.items), reverse=True)
        assert row.items[0].text == row.text
        image_query = row.group == "Image to text"
        assert (row.image is not None) == image_query
        assert all((i.image is None) == image_query for i in row.items)
    assert Retrieval(corpus(range(4)), "test", gallery=0).run(encoders(MESH, TABLE, TABLE)).gallery == []


def test_locale_and_template():
    toy = Retrieval(corpus(range(20)), "test", locale="de", template="ein Bild: {}", gallery=1)
    result = toy.run(encoders(MESH, TABLE, TABLE))
    assert result.metrics["i2t_r@1"] == 1 and result.gallery[0].text.startswith("Wort")


def test_errors():
    with pytest.raises(ConfigError, match=r"split: 'tset' is not a split of the corpus; did you mean 'test'\?"):
        Retrieval(corpus(range(4)), "tset").run(encoders(ONE, TABLE, TABLE))
    with pytest.raises(DataError, match="no captions .* in locale 'fr'"):
        Retrieval(corpus(range(4)), "test", locale="fr").run(encoders(ONE, TABLE, TABLE))
    with pytest.raises(DataError, match="no image that can be encoded.*records: 2, skipped: .*decoded.: 2"):
        Retrieval(corpus(range(2), broken=(0, 1)), "test").run(encoders(ONE, TABLE, TABLE))
    with pytest.raises(ConfigError, match="template"):
        Retrieval(corpus(range(4)), "test", template="no place")
    with pytest.raises(ConfigError, match="every"):
        Retrieval(corpus(range(4)), "test", every=-1)
    assert set(EVALUATORS) > {"captioning", "retrieval", "zero_shot"}
