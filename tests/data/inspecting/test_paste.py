"""The lines that the command prints are a task's data, of every format: they resolve, and give
batches of the records that were written."""

import pytest
from twelve_records import TEXTS, WRITERS

from jaxvl.config import resolve
from jaxvl.data import inspect
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig
from jaxvl.data.inspecting.paste import data_config, main_text
from jaxvl.data.sources.base import Column
from jaxvl.data.tokenizers import Tokenizer, train_unigram


def printed_data(out):
    """What a config file that holds the printed lines calls `data`."""
    names = {}
    exec(out[out.index("data = dict(") :], names)
    return names["data"]


# What a user points at, from the folder that a writer filled; else that folder.
POINTED_AT = {"huggingface": "saved", "tfds": "twelve", "mds": "mds", "mds in zstd": "mds"}
OPTIONS = {"jsonl": ["--source.images=pictures"]}


@pytest.mark.parametrize("form", WRITERS)
def test_printed_lines_give_batches(form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    WRITERS[form](tmp_path)
    assert inspect.main([POINTED_AT.get(form, "."), *OPTIONS.get(form, []), "--sheet=0"]) == 0
    monkeypatch.chdir("/")
    data = resolve(DataConfig, printed_data(capsys.readouterr().out))
    assert data.batch == 8
    source = data.source.open(log=lambda text: None)
    tokenizer = Tokenizer("unigram", train_unigram(TEXTS, 40, lowercase=True), pad_id=0, eos_id=1)
    batches = Batches(data, data.select(source), tokenizer, seed=0)
    batch = batches[0]
    batches.close()
    assert batch["image"].shape == (8, 224, 224, 4)
    texts = {tuple(row) for row in tokenizer.encode(list(TEXTS), 64).tolist()}
    assert {tuple(row) for row in batch["text"].tolist()} <= texts
    assert len({tuple(row) for row in batch["image"][:, 0, 0].tolist()}) == 8


def test_fields_follow_the_kinds_of_the_columns():
    def fields(captions=(), **kinds):
        columns = {name: Column(kind) for name, kind in kinds.items()}
        return data_config({"name": "x"}, 1000, columns, captions)["fields"]

    assert fields(left="image", right="image", label="class") == dict(
        image=dict(name="picture", column="left", size=224),
        class_label=dict(name="label", column="label"),
    )
    assert fields(
        ["alt"], frames="frames", audio="audio", alt="texts", class_label="class"
    ) == dict(
        video=dict(name="frames", size=224),
        waveform=dict(name="waveform"),
        text=dict(name="caption", columns="alt", length=64),
    )
    assert fields(score="float", n="int", at="array") == {
        name: dict(name="number", column=name) for name in ("score", "n")
    }
    assert [data_config({"name": "x"}, n, {}, ())["batch"] for n in (1, 7, 1000)] == [1, 4, 256]
    assert main_text(["alt", "name/de", "name/en"]) == "alt"
    assert (
        main_text(["name/de", "name/en"]) == "name/en"
        and main_text(["a", "b"]) == "a"
        and main_text([]) is None
    )
