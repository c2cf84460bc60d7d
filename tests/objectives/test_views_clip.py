"""The recipe's loss on clean and augmented views: the release's equation in float64."""

import numpy as np
import pytest
from objective_checks import call, compare, nce, same_on_a_mesh, unit

from jaxvl.config import ConfigError, load_file
from jaxvl.objectives.views_clip import ViewsClip

IMAGES = ("augmented_image/image_2", "augmented_image/image_3")
TEXTS = ("augmented_text/text_2", "augmented_text/text_3")
ONE = ViewsClip()
TWO = ViewsClip(augmented_images=IMAGES, augmented_texts=TEXTS)


def example(objective, b=6, d=4, seed=0):
    rng = np.random.default_rng(seed)
    outputs = {
        name: rng.normal(size=(b, d)) for name in objective.reads if not name.endswith("scale")
    }
    return {**outputs, "log_scale": np.log(5.0), "augmented_scale": np.log(3.0)}


def release(o, objective, smoothing=0.1):
    """CL2LLoss, averaged."""
    images, texts = objective.augmented_images, objective.augmented_texts
    clean = nce(unit(o["image"]), unit(o["text"]), np.exp(o["log_scale"]))
    scale = np.exp(o["augmented_scale"])
    each = [nce(unit(o[u]), unit(o[v]), scale, smoothing) for u in images for v in texts]
    return (clean + len(images) * np.mean(each)) / (1 + len(images))


@pytest.mark.parametrize("objective", [ONE, TWO])
def test_the_release(objective):
    compare(objective, example(objective), {}, lambda o: release(o, objective))


def test_clean_labels_are_not_smoothed_and_the_scales_are_apart():
    o = example(ONE)
    want = lambda **changes: release({**o, **changes}, ONE)
    other = {**o, "augmented_scale": np.log(9.0)}
    assert call(ONE, _low(other), {}).value == pytest.approx(
        want(augmented_scale=np.log(9.0)), rel=1e-5
    )
    plain = call(ViewsClip(label_smoothing=0.0), _low(o), {})
    assert plain.value == pytest.approx(release(o, ONE, 0.0), rel=1e-5)
    assert call(ONE, _low(o), {}).metrics["clean"] == plain.metrics["clean"]


def _low(outputs):
    return {name: np.float32(x) for name, x in outputs.items()}


def test_orthonormal_rows_and_two_of_them():
    """Of two orthonormal pairs every view has CLIP's loss log(1 + exp(-s)), and the smooth one
    0.05 s more."""
    o = {name: np.eye(2, dtype=np.float32) for name in ONE.reads if not name.endswith("scale")}
    o |= {"log_scale": np.float32(np.log(4)), "augmented_scale": np.float32(np.log(4))}
    want = np.log1p(np.exp(-4.0)) + 0.05 * 4 / 2
    assert call(ONE, o, {}).value == pytest.approx(want, rel=1e-5)


def test_augmented_views_have_projections_of_their_own():
    """In the config, with the objective's defaults: the clean outputs are of views that nothing
    changes, the augmented ones of heads that read augmented views alone."""
    c = load_file("configs/methods/recipe.py").to_dict()
    pairs = c["tasks"]["pairs"]
    options = dict(pairs["objectives"]["views_clip"])
    del options["weight"]
    objective = ViewsClip(**options)
    changed = {name: bool(field.get("augment")) for name, field in pairs["data"]["fields"].items()}
    for clean, augmented in (
        (objective.image, objective.augmented_images),
        (objective.text, objective.augmented_texts),
    ):
        assert changed[clean] is False
        for name in augmented:
            head, _, view = name.partition("/")
            reads = c["model"]["heads"][head]["reads"]
            assert view in reads and all(changed[read] for read in reads)
            assert c["model"]["views"][view] == clean, "the encoder is shared"


def test_devices():
    same_on_a_mesh(TWO, example(TWO, b=16), {})


def test_refusals():
    with pytest.raises(ConfigError, match="label_smoothing: 1.0 is not valid"):
        ViewsClip(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="augmented_texts: must name at least one output"):
        ViewsClip(augmented_texts=())
