"""Retrieval between modalities, by encoders that know the answer, or know nothing; and a whole run of the one that learns."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvl.config import ConfigError
from jaxvl.data.modalities import AudioConfig
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import DataError
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.modalities import ModalityRetrieval
from jaxvl.sharding import make_mesh
from jaxvl.sharding.mesh import MeshConfig

N, S = 24, 8
WORDS = {f"name {i}": i for i in range(N)}


class Source(list):
    path = "nowhere"


class Corpus:
    """Speech in two languages, of which one has only every other record; the n-th clip is the constant n."""

    splits = ("test",)

    def __init__(self, labels=range(N), heard=("en", "fr")):
        self.labels, self.heard = list(labels), heard

    def prepare(self, log=print):
        return self

    def class_names(self, locale):
        if locale not in ("en", "fr"):
            raise DataError(f"no names in {locale!r}")
        return [f"{locale} {i}" for i in range(N)]

    def split(self, name, having=()):
        from jaxvl.data import clips

        assert name == "test"
        out = Source()
        for i, label in enumerate(self.labels):
            heard = self.heard[:1] if i % 2 else self.heard
            wanted = {k.split("/")[1] for things in having for k in things if "/" in k}
            if wanted and not wanted & set(heard):
                continue
            sounds = {k: clips.to_flac(np.full(160, 100 * label / 32768, np.float32)) for k in heard}
            out.append({
                "key": str(i), "label": label, "image": picture(label), "audio": {"speech": sounds},
                "captions": {k: [f"name {label}", []] for k in ("en", "fr")},
            })  # fmt: skip
        return out


def picture(label):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((S, S, 3), 10 * label, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Tokenizer:
    pad_id, eos_id = 0, 1

    def encode(self, texts, length):
        return np.array([[WORDS.get(t, 0) + 2, 1, *[0] * (length - 2)] for t in texts], np.int32)

    def decode(self, rows):
        return [f"name {row[0] - 2}" for row in rows]


def encoders(right=lambda label: True):
    """Rows of a table by what a record shows; where `right` says no, the sound is embedded as another label."""
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
            out["audio>vision"] = out["audio>text"] = table[jnp.where(wrong[label], (label + 1) % N, label)]
        if "text" in batch:
            out["text>audio"] = out["text>vision"] = table[batch["text"][:, 0] - 2]
        return out

    mesh = make_mesh(MeshConfig())
    return Encoders(None, None, {}, Tokenizer(), Preprocess(image_size=S), 4, mesh, outputs_fn=outputs, batch=16)


OPTIONS = dict(split="test", audio=AudioConfig(seconds=0.01, random=False))


def test_one_that_knows_finds_all_in_each_language():
    evaluator = ModalityRetrieval(Corpus(), pair=("image", "waveform"), locales=("en", "fr"), **OPTIONS)
    evaluator.check(encoders())
    figures = evaluator.run(encoders()).metrics
    assert set(figures) == set(evaluator.figures)
    assert (figures["en/records"], figures["fr/records"]) == (N, N // 2)
    for locale in ("en", "fr"):
        assert figures[f"{locale}/image2waveform_r@1"] == figures[f"{locale}/waveform2image_r@1"] == 1
    assert figures["languages_over_2x"] == 1  # among 12 records, 10 are not twice chance
    np.testing.assert_allclose(figures["fr/image2waveform_r@10_chance"], 10 / 12)


def test_the_gallery_shows_pictures_and_names_what_is_heard():
    result = ModalityRetrieval(Corpus(), pair=("image", "waveform"), locales=("fr", "en"), gallery=3, **OPTIONS).run(
        encoders(lambda i: i != 2)
    )
    assert [row.group for row in result.gallery] == ["Image to waveform, fr"] * 3 + ["Waveform to image, fr"] * 3
    for row in result.gallery[3:]:  # a sound asks for pictures
        label = int(row.text.split()[1])
        best = row.items[0]
        assert row.text.startswith("fr ") and row.image is None and row.rank >= 1
        assert best.right == (label != 2) and best.image.startswith(b"\x89PNG")
        assert label == 2 or best.text == f"fr {label}"
    assert result.gallery[0].image and result.gallery[0].items[0].image is None
    evaluator = ModalityRetrieval(Corpus(), pair=("image", "text"), gallery=2, **OPTIONS)
    evaluator.check(encoders())
    result = evaluator.run(encoders())
    assert set(result.metrics) == set(evaluator.figures)
    texts = result.gallery
    assert [row.group for row in texts] == ["Image to text"] * 2 + ["Text to image"] * 2
    assert all(row.items[0].right and row.items[0].text == row.text for row in texts)
    assert not ModalityRetrieval(Corpus(), pair=("image", "text"), gallery=0, **OPTIONS).run(encoders()).gallery


@pytest.mark.parametrize("locale, shown", [("fr", "fr"), ("xx", "")])
def test_sounds_of_no_language_are_called_by_what_names_there_are(locale, shown):
    options = dict(OPTIONS, pair=("image", "waveform"), locales=("zxx",), locale=locale, gallery=2)
    result = ModalityRetrieval(Corpus(heard=("zxx",)), **options).run(encoders())
    assert result.metrics["zxx/waveform2image_r@1"] == 1
    for row in result.gallery:
        assert row.text.startswith(f"{shown} ") if shown else row.text == ""


def test_figures_of_one_that_is_wrong_for_a_third():
    figures = ModalityRetrieval(Corpus(), pair=("image", "waveform"), **OPTIONS).run(encoders(lambda i: i % 3)).metrics
    np.testing.assert_allclose(figures["waveform2image_r@1"], 2 / 3)
    z, p = scipy.stats.norm.ppf(0.975), round(N * figures["image2waveform_r@10"]) / N  # Wilson's interval, written out
    middle, half = (p + z * z / (2 * N)) / (1 + z * z / N), z / (1 + z * z / N) * np.sqrt(p * (1 - p) / N + z * z / (4 * N * N))
    np.testing.assert_allclose([figures["image2waveform_r@10_low"], figures["image2waveform_r@10_high"]], [middle - half, middle + half])


def test_records_of_one_class_are_right_for_each_other_and_equal_texts_are_one():
    corpus = Corpus([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    sounds = ModalityRetrieval(corpus, pair=("image", "waveform"), **OPTIONS).run(encoders()).metrics
    texts = ModalityRetrieval(corpus, pair=("image", "text"), **OPTIONS).run(encoders()).metrics
    spoken = ModalityRetrieval(corpus, pair=("waveform", "text"), **OPTIONS).run(encoders()).metrics
    assert sounds["image2waveform_r@1"] == texts["image2text_r@1"] == texts["text2image_r@1"] == spoken["text2waveform_r@1"] == 1
    np.testing.assert_allclose(texts["image2text_r@10_chance"], 10 / 14)  # of 14 names


def test_errors():
    for pair, message in ((("image", "video"), "two modalities"), (("image", "smell"), "'smell' is not one of")):
        with pytest.raises(ConfigError, match=message):
            ModalityRetrieval(Corpus(), pair=pair, **OPTIONS)
    deaf = encoders()
    blind = types.SimpleNamespace(**{**deaf.__dict__, "outputs": lambda batch, names: deaf.outputs({"text": batch["text"]}, names)})
    with pytest.raises(ConfigError, match="needs the model output 'vision>text'"):
        ModalityRetrieval(Corpus(), pair=("image", "text"), **OPTIONS).run(blind)
