import json

import numpy as np
import pytest
from data_samples import COLUMNS, FakeSource, record

from jaxvl.bench import data
from jaxvl.config import ConfigError
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column

PARTS = (
    "train the vocabulary",
    "read a record",
    "decode at its stored size",
    "decode and scale to 16 px",
    "decode and scale to 16 px, fast_decode",
    "write a picture's row",
    "write a caption's row",
    "tokenise",
    "batch, cold",
    "batch, warm",
    "feed onto the mesh, cold",
    "feed onto the mesh, warm",
    "augment on the device",
)
SMALL = ["--batch=16", "--image-size=16", "--records=8", "--repeats=1", "--batches=2"]


def test_the_benchmark_measures_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    file = tmp_path / "out.json"
    named = [
        "--source=shapes",
        "--source.split=test_b_new",
        "--source.size=24",
        "--source.variants=1",
    ]
    out = data.main([*named, *SMALL, "--json", str(file)])
    assert json.loads(file.read_text()) == out and out["machine"]["cores"] >= 1
    assert out["arguments"]["source"] == dict(
        name="shapes", split="test_b_new", size=24, variants=1
    )
    parts = [f["part"] for f in out["figures"]]
    for part in PARTS:
        assert any(p.startswith(part) for p in parts), part
    for f in out["figures"]:
        assert f["images_per_second_per_core"] * f["core_us_per_image"] == pytest.approx(1e6)
    stages = out["stages"]
    # All that the later epochs take may have been read ahead during the first.
    for shares in [stages["cold"], *([stages["warm"]] if stages["warm"] else [])]:
        assert set(shares) == {"read", "decode", "transform", "transfer"}
        assert sum(shares.values()) == pytest.approx(1)
    assert out["stages"]["cold"]["decode"] > 0
    said = capsys.readouterr().out
    assert "images/s per core" in said and "work of the feed, cold: read" in said


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--source=shape"], r"source.name: 'shape' .*did you mean 'shapes'"),
        (["--source=shapes", "--source.sise=3"], r"source.sise: .*did you mean 'size'"),
        (["--source=shapes", "--source.size=3"], "source.size: 3 must be in 8"),
    ],
)
def test_sources_that_cannot_be(argv, message):
    with pytest.raises(ConfigError, match=message):
        data.parse(argv)


def test_unknown_options(capsys):
    for argv in (["--corpus=shapes"], ["--source=shapes", "--source.size"]):
        with pytest.raises(SystemExit):
            data.parse(argv)
        assert "unknown: " in capsys.readouterr().err


def test_the_emoji_are_what_is_read_where_nothing_is_named():
    args, source = data.parse([])
    assert args.source == dict(name="emoji", split="train_a") and source.split == "train_a"


def test_the_text_is_a_column_that_the_source_has():
    assert data.text_column(FakeSource(1)) == "name/en"
    assert (
        data.text_column(FakeSource(1, columns={"image": Column("image"), "txt": Column("text")}))
        == "txt"
    )
    with pytest.raises(ConfigError, match="text: must name a column; fake has no texts"):
        data.text_column(FakeSource(1, columns={"image": Column("image")}))


def test_bad_records_are_left_out():
    source = FakeSource(
        9,
        {
            0: BadRecord("record cannot be read", "x"),
            3: {**record(3), "image": b""},
            8: {"class_label": 1},
        },
    )
    records = data.read(source, data.numbers(source, 9), ["image", "name/en"])
    assert len(records) == 8
    tokenizer, figure = data.train(source, Caption("name/en"), 9)
    assert figure.images == 7 and tokenizer.vocab_size > 16
    assert data.numbers(source, 3) == [0, 4, 8] and set(COLUMNS) == set(source.columns)
    context = Context(tokenizer, Preprocess(), Cache(0))
    fields = dict(image=Picture(size=8), text=Caption("name/en"))
    readers = {name: field.reader(name, source, context) for name, field in fields.items()}
    assert [values["text"][0][1][0][0] for _, values in data.loaded(readers, records)] == [
        record(i)["name/en"] for i in (1, 2, 4, 5, 6, 7)
    ]
    with pytest.raises(
        ConfigError, match="source: none of the records that were tried has a picture and a text"
    ):
        data.loaded(readers, [])
    assert isinstance(data.measure("x", 2, lambda: np.zeros(3)).row["images_per_second"], float)
