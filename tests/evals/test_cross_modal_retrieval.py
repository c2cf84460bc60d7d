"""Retrieval between modalities, by encoders that know the answer, or know nothing; and a whole run
of the one that learns."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from known_answers import Toy

from jaxvl.config import ConfigError
from jaxvl.data import clips
from jaxvl.data.classes import ClassSet
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.base import Column, Source
from jaxvl.evals.cross_modal_retrieval import CrossModalRetrieval
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.sharding import make_mesh
from jaxvl.sharding.mesh import MeshConfig

N = 24
S = 8
WORDS = {f"name {i}": i for i in range(N)}


class Heard(Source):
    """Speech in two languages, of which one has only every other record; the n-th clip is the
    constant n."""

    name = fingerprint = "heard"

    def __init__(self, labels=range(N), heard=("en", "fr")):
        self.labels = list(labels)
        self.heard = heard
        names = {language: tuple(f"{language} {i}" for i in range(N)) for language in ("en", "fr")}
        self.columns = {
            "image": Column("image"),
            "class_label": Column("class", classes=ClassSet(names)),
        }
        self.columns |= {f"speech/{language}": Column("audio", optional=True) for language in heard}
        self.columns |= {f"name/{language}": Column("text") for language in ("en", "fr")}

    def __len__(self):
        return len(self.labels)

    def speaks(self, i):
        return self.heard[:1] if i % 2 else self.heard

    def present(self, name):
        kind, _, language = name.partition("/")
        if kind != "speech":
            return super().present(name)
        return np.array([language in self.speaks(i) for i in range(len(self))])

    def read(self, i, columns=None):
        label = self.labels[i]
        record = {
            "image": picture(label),
            "class_label": label,
            "name/en": f"name {label}",
            "name/fr": f"name {label}",
        }
        for language in self.speaks(i):
            record[f"speech/{language}"] = clips.to_flac(
                np.full(160, 100 * label / 32768, np.float32)
            )
        return {name: record[name] for name in columns if name in record}


def picture(label):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((S, S, 3), 10 * label, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Tokenizer:
    pad_id = 0
    eos_id = 1

    def encode(self, texts, length):
        return np.array([[WORDS.get(t, 0) + 2, 1, *[0] * (length - 2)] for t in texts], np.int32)

    def decode(self, rows):
        return [f"name {row[0] - 2}" for row in rows]


def encoders(right=lambda label: True):
    """Rows of a table by what a record shows; where `right` says no, the sound is embedded as
    another label."""
    rows = np.random.default_rng(0).normal(size=(N, 16))
    table = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)
    wrong = jnp.asarray([not right(i) for i in range(N)])

    def outputs(weights, batch):
        out = {}
        if "image" in batch:
            label = jnp.rint((batch["image"][:, 0, 0, 0] * 0.5 + 0.5) * 25.5).astype(int)
            out["vision>audio"] = out["vision>text"] = table[label]
        if "waveform" in batch:
            label = jnp.rint(batch["waveform"][:, 0] / 100).astype(int)
            out["audio>vision"] = out["audio>text"] = table[
                jnp.where(wrong[label], (label + 1) % N, label)
            ]
        if "text" in batch:
            out["text>audio"] = out["text>vision"] = table[batch["text"][:, 0] - 2]
        return out

    mesh = make_mesh(MeshConfig())
    return Encoders(
        Functions(None, None, outputs), {}, Tokenizer(), Preprocess(image_size=S), 4, mesh, batch=16
    )


OPTIONS = dict(
    waveform="speech/{language}", text="name/{language}", seconds=0.01, group="class_label"
)


def evaluator(*args, heard=("en", "fr"), **options):
    return CrossModalRetrieval(Toy(Heard(*args, heard=heard)), **{**OPTIONS, **options})


def test_one_that_knows_finds_all_in_each_language():
    made = evaluator(pair=("image", "waveform"), languages=("en", "fr"))
    made.check(encoders())
    figures = made.run(encoders()).metrics
    assert set(figures) == set(made.figures)
    assert (figures["en/records"], figures["fr/records"]) == (N, N // 2)
    for language in ("en", "fr"):
        assert (
            figures[f"{language}/image2waveform_r@1"]
            == figures[f"{language}/waveform2image_r@1"]
            == 1
        )
    assert figures["languages_over_2x"] == 1  # among 12 records, 10 are not twice chance
    np.testing.assert_allclose(figures["fr/image2waveform_r@10_chance"], 10 / 12)


def test_the_gallery_shows_pictures_and_names_what_is_heard():
    result = evaluator(pair=("image", "waveform"), languages=("fr", "en"), gallery=3).run(
        encoders(lambda i: i != 2)
    )
    assert [row.group for row in result.gallery] == ["Image to waveform, fr"] * 3 + [
        "Waveform to image, fr"
    ] * 3
    for row in result.gallery[3:]:  # a sound asks for pictures
        label = int(row.text.split()[1])
        best = row.items[0]
        assert row.text.startswith("fr ") and row.image is None and row.rank >= 1
        assert best.right == (label != 2) and best.image.startswith(b"\x89PNG")
        assert label == 2 or best.text == f"fr {label}"
    assert result.gallery[0].image and result.gallery[0].items[0].image is None
    made = evaluator(pair=("image", "text"), gallery=2)
    made.check(encoders())
    result = made.run(encoders())
    assert set(result.metrics) == set(made.figures)
    texts = result.gallery
    assert [row.group for row in texts] == ["Image to text"] * 2 + ["Text to image"] * 2
    assert all(row.items[0].right and row.items[0].text == row.text for row in texts)
    assert not evaluator(pair=("image", "text"), gallery=0).run(encoders()).gallery


@pytest.mark.parametrize("language, shown", [("fr", "fr"), ("xx", "")])
def test_sounds_of_no_language_are_called_by_what_names_there_are(language, shown):
    options = dict(pair=("image", "waveform"), languages=("zxx",), language=language, gallery=2)
    result = evaluator(heard=("zxx",), **options).run(encoders())
    assert result.metrics["zxx/waveform2image_r@1"] == 1
    for row in result.gallery:
        assert row.text.startswith(f"{shown} ") if shown else row.text == ""


def test_figures_of_one_that_is_wrong_for_a_third():
    figures = evaluator(pair=("image", "waveform")).run(encoders(lambda i: i % 3)).metrics
    np.testing.assert_allclose(figures["waveform2image_r@1"], 2 / 3)
    # Wilson's interval, written out
    z = scipy.stats.norm.ppf(0.975)
    p = round(N * figures["image2waveform_r@10"]) / N
    middle = (p + z * z / (2 * N)) / (1 + z * z / N)
    half = z / (1 + z * z / N) * np.sqrt(p * (1 - p) / N + z * z / (4 * N * N))
    np.testing.assert_allclose(
        [figures["image2waveform_r@10_low"], figures["image2waveform_r@10_high"]],
        [middle - half, middle + half],
    )


def test_records_of_one_group_are_right_for_each_other_and_equal_texts_are_one():
    labels = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    sounds = evaluator(labels, pair=("image", "waveform")).run(encoders()).metrics
    texts = evaluator(labels, pair=("image", "text")).run(encoders()).metrics
    spoken = evaluator(labels, pair=("waveform", "text")).run(encoders()).metrics
    assert (
        sounds["image2waveform_r@1"]
        == texts["image2text_r@1"]
        == texts["text2image_r@1"]
        == spoken["text2waveform_r@1"]
        == 1
    )
    np.testing.assert_allclose(texts["image2text_r@10_chance"], 10 / 14)  # of 14 names
    alone = evaluator(labels, pair=("image", "waveform"), group=None).run(encoders()).metrics
    np.testing.assert_allclose(
        alone["image2waveform_r@1"], (13 + 3 * 1 / 3) / 16
    )  # three sounds of class 0 tie, of which one is right


def test_parts_of_a_sound_are_weighed_by_what_asks():
    """Of three parts that are heard one is the sound's and two are other names; the fourth is
    padding, and embedded as a wrong name."""
    one = encoders()
    table = np.asarray(one.functions.outputs({}, {"text": np.arange(N)[:, None] + 2})["text>audio"])
    order = [0, 5, 9, 1]

    def outputs(weights, batch):
        found = one.functions.outputs(weights, {"text": batch["text"]})
        label = jnp.rint(batch["waveform"][:, 0, 0] / 100).astype(int)
        found["audio>text"] = jnp.asarray(table)[(label[:, None] + jnp.array(order)) % N]
        return found

    heard = Encoders(
        Functions(None, None, outputs), {}, Tokenizer(), Preprocess(image_size=S), 4, one.mesh
    )
    options = dict(pair=("waveform", "text"), seconds=216 / 16_000, parts=4)
    fit = table[(np.arange(N)[:, None] + order[:3]) % N].astype(np.float64) @ table.T
    for temperature in (0.5, None):
        weights = np.ones_like(fit) if temperature is None else np.exp(fit / temperature)
        scores = (weights * fit).sum(1) / weights.sum(1)
        made = evaluator(**options, temperature=temperature, gallery=1)
        result = made.run(heard)
        for name, s in (("waveform2text", scores), ("text2waveform", scores.T)):
            right = (s > s.diagonal()[:, None]).sum(1)
            for k in (1, 5, 10):
                want = np.mean(right < k)
                assert 0 < want < 1 or k > 1
                np.testing.assert_allclose(result.metrics[f"{name}_r@{k}"], want, err_msg=name)
        assert {row.group for row in result.gallery} == {"Waveform to text", "Text to waveform"}
        shown = result.gallery[0].items[0].score
        assert np.isclose(scores.max(1), shown, atol=1e-6).any()


def test_errors():
    with pytest.raises(ConfigError, match="parts: 2 are of a waveform"):
        evaluator(pair=("image", "text"), parts=2)
    for pair, message in (
        (("image", "video"), "two modalities"),
        (("image", "smell"), "'smell' is not one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluator(pair=pair)
    with pytest.raises(
        ConfigError,
        match=r"languages: \['fr'\]: neither image nor waveform names a column of a language, as speech/{language}",
    ):
        evaluator(pair=("image", "waveform"), waveform="audio", languages=("fr",))
    with pytest.raises(
        ConfigError, match=r"text: 'name/{locale}' may hold {language}, and no other braces"
    ):
        evaluator(pair=("image", "text"), text="name/{locale}")
    for options, message in (
        (
            dict(pair=("image", "waveform"), languages=("en", "de")),
            r"languages\[1\]: 'speech/de' is not a column of heard; did you mean 'speech/en'",
        ),
        (
            dict(pair=("image", "waveform"), language="de"),
            r"waveform: 'speech/de' is not a column of heard",
        ),
        (
            dict(pair=("image", "waveform"), waveform="name/en"),
            r"waveform: 'name/en' of heard holds values of kind 'text'; must be audio \(such columns: speech/en",
        ),
        (
            dict(pair=("video", "text")),
            r"video: 'frames' is not a column of heard \(columns: image, class_label, speech/en",
        ),
        (dict(pair=("image", "text"), group="groups"), r"group: 'groups' is not a column of heard"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluator(**options).check(encoders())
    deaf = encoders()
    blind = types.SimpleNamespace(
        **{
            **deaf.__dict__,
            "outputs": lambda batch, names: deaf.outputs({"text": batch["text"]}, names),
        }
    )
    with pytest.raises(ConfigError, match="needs the model output 'vision>text'"):
        evaluator(pair=("image", "text")).run(blind)
