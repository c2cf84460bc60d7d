"""The evaluators of hidden patches and of interleaved rows, with models whose answers are known."""

import jax
import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.config import Interleave
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import DataError
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.tokenizers import Tokenizer, train_unigram
from jaxvl.evals.interleaved import Interleaved
from jaxvl.evals.masked_image import MaskedImages, overlap
from jaxvl.sharding import make_mesh

SOURCE = Shapes(size=16, variants=1, split="test_a")
S = 16
P = 16
NAMES = dict(source=SOURCE, text="name/en")


class Knows:
    """Stands for `Encoders`; `answer(batch)` gives the named outputs."""

    def __init__(self, answer, rows):
        texts = SOURCE.open(log=lambda text: None).columns["class_label"].classes.names["en"]
        self.tokenizer = Tokenizer(
            "unigram", train_unigram(texts, 64, lowercase=True), pad_id=0, eos_id=1
        )
        self.answer = answer
        self.batch = rows
        self.text_length = 12
        self.threads = 2
        self.preprocess = Preprocess(image_size=S)
        self.mesh = make_mesh(devices=jax.devices()[:1])

    def outputs(self, batch, names):
        return {name: np.asarray(v) for name, v in self.answer(batch).items() if name in names}


def test_overlap_of_masks():
    hidden = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
    shows = np.array([[1, 0, 0, 0], [0, 1, 1, 1]], bool)
    hit, iou, hit_random, iou_random = overlap(hidden, shows)
    assert (
        hit.tolist() == [0.5, 1.0]
        and iou.tolist() == [0.5, 2 / 3]
        and hit_random.tolist() == [0.25, 0.75]
    )
    # Two of four places, by lot: the one that shows the thing is hit half the time (1/2, else 0/3);
    # of three, 1 or 2 are hit.
    np.testing.assert_allclose(iou_random, [0.25, 0.5 * (2 / 3) + 0.5 * (1 / 4)], atol=0.15)


def cut(image):
    return (
        image.reshape(len(image), 4, 4, 4, 4, -1)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(len(image), P, -1)
    )


def test_figures_of_a_model_that_completes_the_image_of_its_text_only():
    names = {}

    def answer(batch):
        pixels = batch["image"].astype(np.float64) / 255
        patches = cut((pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]) * 2 - 1)
        right = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
            patches.var(-1, keepdims=True) + 1e-6
        )
        scores = cut(batch["image"][..., 3:] > 127).mean(-1)
        hidden = scores >= np.sort(scores, 1)[:, -4:-3]
        if "patch_scores" in batch:  # the second time, with another's text
            np.testing.assert_allclose(batch["patch_scores"], scores)
            same = np.array([tuple(t) == names[i] for i, t in enumerate(batch["text"].tolist())])
            right = np.where(same[:, None, None], right, right + 2)
        else:
            names.update(enumerate(map(tuple, batch["text"].tolist())))
        return {
            "patch_prediction": right,
            "patch_weight": hidden.astype(np.float32),
            "patch_scores": scores,
        }

    result = MaskedImages(**NAMES, gallery=3).run(Knows(answer, rows=100))
    figures = result.metrics
    assert set(figures) == set(MaskedImages(**NAMES).figures)
    assert figures["images"] == 144 and len(result.gallery) == 3
    np.testing.assert_allclose(
        [figures["error"], figures["error_other_text"], figures["gain"]], [0, 4, 1], atol=1e-3
    )
    assert (
        1 >= figures["hit"] > 0.8 > figures["hit_random"] and figures["iou"] > figures["iou_random"]
    )
    with pytest.raises(ConfigError, match="shown: 0 is a share"):
        MaskedImages(**NAMES, shown=0)


def test_figures_of_a_model_that_knows_the_order_of_a_row():
    seen = []

    def answer(batch):
        b, r = batch["text"].shape
        seen.append(batch)
        swapped = len(seen) % 2 == 0
        if swapped:
            np.testing.assert_array_equal(batch["image"][:, 1:], seen[-2]["image"][:, :-1])
        lse = np.full((b, r), 3.0 if swapped else 1.0)
        return dict(
            caption_lse=lse,
            caption_target=np.full((b, r), 0.5),
            caption_weight=batch["weight"],
            caption_correct=lse < 2,
        )

    figures = Interleaved(**NAMES).run(Knows(answer, rows=10)).metrics
    assert figures == {
        "loss": 0.5,
        "loss_swapped": 2.5,
        "rise": 2.0,
        "token_accuracy": 1.0,
        "token_accuracy_swapped": 0.0,
        "rows": 36.0,
    }
    assert set(figures) == set(Interleaved(**NAMES).figures)
    with pytest.raises(ConfigError, match=r"interleave\.records: 1 must be >= 2"):
        Interleaved(**NAMES, interleave=Interleave(1))
    with pytest.raises(DataError, match="has 144 records, too few for a row of 200"):
        Interleaved(**NAMES, interleave=Interleave(200)).run(Knows(answer, rows=10))
