"""A step of IRRA: its three losses, encoded in parts and over eight devices as on one."""

import numpy as np
import pytest
import test_step
import tiny
from test_step import SGD_LIKE, close, run

CLASSES = 7


def changes(microbatches):
    root = tiny.config().to_dict()
    masked = dict(name="masked_text", columns="name/en", length=6, mask_id=2)
    label = dict(name="label", column="class_label")
    pairs = dict(
        root["tasks"]["pairs"],
        objectives=dict(
            sdm=1.0,
            masked_words=dict(weight=1.0, teacher=None),
            image_identity=dict(name="classification", weight=0.5, head="identity/image"),
            text_identity=dict(name="classification", weight=0.5, head="identity/text"),
        ),
        microbatches=microbatches,
    )
    pairs["data"]["fields"] = tiny.fields(masked_text=masked, class_label=label)
    heads = dict(
        identity=dict(name="classifier", reads=("image", "text"), classes=CLASSES),
        fusion=dict(
            name="fusion",
            matching=False,
            words="masked_text",
            vocab_size=64,
            cross="first",
            depth=1,
            heads=2,
        ),
    )
    model = dict(root["model"], views=dict(masked_text="text"), heads=heads)
    return dict(**SGD_LIKE, model=model, tasks=dict(pairs=pairs))


def values():
    """Two rows of each identity, nearly; one token of each text is hidden."""
    given = test_step.batch()
    identity = (np.arange(16) % CLASSES).astype(np.int32)
    target = np.where(np.arange(6) == 1, given["text"], -1).astype(np.int32)
    masked = np.where(target >= 0, 2, given["text"]).astype(np.int32)
    words = {"masked_text": masked, "masked_text_target": target}
    return {**given, **words, "group_id": identity, "class_label": identity}


@pytest.mark.slow
def test_parts_and_devices_equal_the_whole():
    whole, m1 = run(**changes(1), values=values(), mesh=dict(data=1))
    spread, m8 = run(**changes(2), values=values(), devices=8, mesh=dict(data=8))
    for name in ("sdm", "masked_words", "image_identity", "text_identity"):
        np.testing.assert_allclose(m1[f"loss/{name}"], m8[f"loss/{name}"], rtol=1e-5, err_msg=name)
    close(whole, spread, 1e-5)
    start = test_step.initial(**changes(1))
    for path in ("heads/fusion/cross/key/kernel", "heads/identity/linear/kernel"):
        assert np.abs(whole.params[path] - start.params[path]).max() > 0, path
