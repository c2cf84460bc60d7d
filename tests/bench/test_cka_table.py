"""The table of encoder pairs, from features that were saved."""

import json

import numpy as np
import pytest

from jaxvl.bench import cka as bench
from jaxvl.config import ConfigError
from jaxvl.data.tables import PRESENT, write_table
from jaxvl.evals.metrics.cka import cka

N = 50


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(N, 6)).astype(np.float32)
    noise = rng.normal(size=(N, 6)).astype(np.float32)
    present = np.arange(N) % 7 > 0
    features = dict(close=text + 0.3 * noise, far=text + 3 * noise, text=text)
    features["close"][~present] = 1e6  # of records without values
    for name, values in features.items():
        columns = {"pooled": values, "tokens": values[:, None]}
        if name == "close":
            columns[PRESENT] = present
        about = dict(records=N, source="all", made_from={}, step=1)
        write_table(tmp_path / name / "1", columns, **about)
    return tmp_path, features, present


def test_pairs_from_the_most_alike(saved, capsys):
    folder, features, present = saved
    images = [f"{folder / name}:pooled" for name in ("far", "close")]
    out = folder / "figures.json"
    arguments = ["--images", *images, "--texts", f"{folder / 'text'}:pooled", "--block", "8"]
    rows = bench.main([*arguments, "--json", str(out)])
    assert [row["image"] for row in rows] == images[::-1]
    assert [row["records"] for row in rows] == [present.sum(), N]
    expected = cka([(features["close"][present], features["text"][present])])
    np.testing.assert_allclose(
        [rows[0]["cka"], rows[0]["unbiased"]], [expected.linear, expected.unbiased]
    )
    assert "CKA of encoders" in capsys.readouterr().out
    assert json.loads(out.read_text())["rows"] == rows


@pytest.mark.parametrize(
    "image, text, problem",
    [
        ("close", "text:pooled", "images: '.*close' must be FOLDER:COLUMN"),
        ("close:pool", "text:pooled", "images: 'pool' is no column of .* .columns: pooled, tokens"),
        ("close:tokens", "text:pooled", "images: 'tokens' has shape .*; must be one vector"),
        ("close:pooled", "none:pooled", "texts: '.*none' holds no table"),
        ("close:pooled", "other:pooled", "texts: .* is of the records of another source than"),
    ],
)
def test_what_does_not_fit_is_named(saved, image, text, problem):
    folder = saved[0]
    about = dict(records=N, source="others", made_from={}, step=1)
    write_table(folder / "other" / "1", {"pooled": saved[1]["text"]}, **about)
    with pytest.raises(ConfigError, match=problem):
        bench.alignments([f"{folder}/{image}"], [f"{folder}/{text}"])
