"""Replaced texts and labels: which, by what, and that all else is the source's."""

import pickle

import numpy as np
import pytest
from twelve_records import RECORDS, write_jsonl

from jaxvl.config import ConfigError
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.mixture import MixtureConfig, PartConfig
from jaxvl.data.sources.replaced import Replaced


def quiet(line):
    pass


@pytest.fixture
def config(tmp_path):
    return write_jsonl(tmp_path)


def texts(source):
    return [source.read(i, ("text",))["text"] for i in range(len(source))]


def test_some_have_another_text_and_say_so(config):
    source = Replaced(config, share=0.5, texts=("thank you", "good bye"), flag="visual").open(quiet)
    own = source.column("visual")
    assert 2 <= own.sum() <= 10 and source.columns["visual"].kind == "int"
    for i, (text, record) in enumerate(zip(texts(source), RECORDS, strict=True)):
        whole = source[i]
        assert text == whole["text"] and whole["visual"] == own[i]
        assert whole["image"] == record["image"]
        assert text == record["text"] if own[i] else text in ("thank you", "good bye")
    assert source.read(3, ("visual",)) == {"visual": own[3]} and source.read(3, ()) == {}
    assert texts(pickle.loads(pickle.dumps(source))) == texts(source)


def test_texts_of_other_records_and_shares(config):
    given = [record["text"] for record in RECORDS]
    assert texts(Replaced(config, share=0.0).open(quiet)) == given
    every = texts(Replaced(config, share=1.0).open(quiet))
    assert set(every) <= set(given) and sum(a == b for a, b in zip(every, given)) < 6
    assert texts(Replaced(config, share=1.0, seed=1).open(quiet)) != every


def test_labels_of_other_records():
    plain = Shapes(size=16, variants=1, split="test_a").open(quiet)
    source = Replaced(Shapes(size=16, variants=1, split="test_a"), column="shape", share=0.4)
    source = source.open(quiet)
    truth, given, own = plain.column("shape"), source.column("shape"), source.column("own_text")
    np.testing.assert_array_equal(given[own > 0], truth[own > 0])
    wrong = (given != truth).mean()
    assert 0.25 < wrong < 0.45, "40 % are replaced, and one of eight by its like"
    rows = [source.read(i, ("shape", "name/en")) for i in range(10)]
    assert [row["shape"] for row in rows] == given[:10].tolist()
    assert rows[3]["name/en"] == plain.read(3, ("name/en",))["name/en"]
    with pytest.raises(ConfigError, match="column: 'shape' is no column .* with one text a"):
        texts = Replaced(Shapes(size=16, split="test_a"), column="shape", texts=("a",))
        texts.open(quiet)


def test_parts_and_fingerprints(config):
    mixture = MixtureConfig((PartConfig(config, None, "one"),))
    source = Replaced(mixture).open(quiet)
    below = mixture.open(quiet)
    assert [part.name for part in source.parts] == ["one"] and len(source) == len(below)
    assert source.shards().tolist() == below.shards().tolist()
    fingerprints = {Replaced(config, seed=seed).open(quiet).fingerprint for seed in (0, 1, 1)}
    assert len(fingerprints) == 2 and config.open(quiet).fingerprint not in fingerprints
    assert source.column("text") is None
    np.testing.assert_array_equal(source.present("own_text"), True)


def test_refusals(config):
    with pytest.raises(ConfigError, match="column: 'texd' is no column .* did you mean 'text'"):
        Replaced(config, column="texd").open(quiet)
    with pytest.raises(ConfigError, match="flag: 'class_label' is a column"):
        Replaced(config, flag="class_label").open(quiet)
    with pytest.raises(ConfigError, match="share: 1.5 must be in"):
        Replaced(config, share=1.5)
