"""Evaluators that read batches as training does see the pictures that the other evaluators, and
their thumbnails, show."""

import io
import types

import jax
import numpy as np
import pytest
from known_answers import Records, Toy, Words
from PIL import Image

from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.numbers import Group
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.base import Column
from jaxvl.evals.rows import picture, rows_of
from jaxvl.evals.source_options import SourceOptions
from jaxvl.evals.thumbnails import Thumbnails
from jaxvl.sharding import make_mesh

S = 16
N = 6


class Photos(Records):
    """Wide JPEGs, large enough to be decoded at an eighth of their size where that is asked for;
    each is a clip of one frame as well."""

    def __init__(self):
        super().__init__([(k, {"en": [f"word {k}", []]}) for k in range(N)])
        self.columns["frames"] = Column("frames")

    def record(self, i, columns):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 36, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((288, 160)).save(out, "JPEG")
        return {**super().record(i, columns), "image": out.getvalue(), "frames": [out.getvalue()]}


@pytest.mark.parametrize(
    "how",
    [
        dict(resize="squash", interpolation="bilinear"),
        dict(scale_to=24),
        dict(interpolation="lanczos"),
    ],
)
def test_batches_of_evaluators_are_pictures_as_the_model_is_tested(how):
    source = Photos()
    mesh = make_mesh(devices=jax.devices()[:1])
    encoders = types.SimpleNamespace(
        preprocess=Preprocess(S, **how),
        tokenizer=Words(),
        text_length=4,
        batch=4,
        mesh=mesh,
        threads=2,
    )
    clip = Frames(size=S, frames=2, fast_decode=False)
    seen = {}
    for name, field in {"image": picture("image", encoders), "video": clip}.items():
        for batch, n in rows_of(
            SourceOptions(Toy(source)), encoders, {name: field, "group_id": Group("class_label")}
        ):
            seen |= {
                (name, i): row.reshape(-1, S, S, 4)[0]
                for i, row in zip(batch["group_id"][:n].tolist(), batch[name])
            }
            assert set(batch) == {name, "group_id"}
    assert len(seen) == 2 * N
    for (_, i), row in seen.items():
        photo = Image.open(io.BytesIO(source[i]["image"]))
        side = how.get("scale_to", S)
        size = (side, side) if how.get("resize") == "squash" else (int(side * 288 / 160), side)
        scaled = photo.resize(size, Image.Resampling[how.get("interpolation", "bicubic").upper()])
        left, top = ((n - S) // 2 for n in size)
        expected = np.asarray(scaled.crop((left, top, left + S, top + S)))
        np.testing.assert_array_equal(row[..., :3], expected)
        shown = Thumbnails(source, encoders.preprocess)(i)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), expected)
