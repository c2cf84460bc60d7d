"""Evaluators that read batches as training does see the pictures that the other evaluators, and their thumbnails, show."""

import io
import types

import jax
import numpy as np
import pytest
from known_answers import Corpus, Source, Words
from PIL import Image

from jaxvl.data.preprocess import Preprocess
from jaxvl.evals.split import SplitOptions, Thumbnails, rows_of
from jaxvl.sharding import make_mesh

S, N = 16, 6


class Photos(Source):
    """Wide JPEGs, large enough to be decoded at an eighth of their size where that is asked for."""

    def __getitem__(self, i):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 36, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((288, 160)).save(out, "JPEG")
        return {**super().__getitem__(i), "image": out.getvalue(), "frames": [out.getvalue()]}


class Clips(Corpus):
    """Every record has frames."""

    def split(self, name, having=()):
        return super().split(name)


@pytest.mark.parametrize("how", [dict(resize="squash", interpolation="bilinear"), dict(scale_to=24), dict(interpolation="lanczos")])
def test_batches_of_evaluators_are_pictures_as_the_model_is_tested(how):
    source = Photos([(k, {"en": [f"word {k}", []]}) for k in range(N)])
    corpus = Clips({"test": source}, {"en": [f"word {k}" for k in range(N)]})
    mesh = make_mesh(devices=jax.devices()[:1])
    encoders = types.SimpleNamespace(preprocess=Preprocess(S, **how), tokenizer=Words(), text_length=4, batch=4, mesh=mesh)
    seen = {}
    for modality in ("image", "video"):
        for batch, n in rows_of(SplitOptions(corpus, "test"), encoders, modalities=(modality,)):
            seen |= {(modality, i): row.reshape(-1, S, S, 4)[0] for i, row in zip(batch["id"][:n].tolist(), batch[modality])}
    assert len(seen) == 2 * N
    for (_, i), row in seen.items():
        picture = Image.open(io.BytesIO(source[i]["image"]))
        side = how.get("scale_to", S)
        size = (side, side) if how.get("resize") == "squash" else (int(side * 288 / 160), side)
        scaled = picture.resize(size, Image.Resampling[how.get("interpolation", "bicubic").upper()])
        left, top = ((n - S) // 2 for n in size)
        expected = np.asarray(scaled.crop((left, top, left + S, top + S)))
        np.testing.assert_array_equal(row[..., :3], expected)
        shown = Thumbnails(source, encoders.preprocess)(i)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), expected)
