"""CoCa on the emoji corpus: one model that finds pictures by their names and writes names under
pictures.

    launch/local.sh configs/coca_emoji.py                    # both losses
    launch/local.sh configs/coca_emoji.py:loss=caption       # the paper's ablation: one of them alone
    launch/local.sh configs/coca_emoji.py:loss=contrast

The names are those of `align_emoji.py`, of which this has the image encoder; one row in twelve is a
stamp with its sentence, in English. `written` writes names of OpenMoji pictures, a style that is
not in training, `stamps` writes sentences, `likelihood` is how likely the right names are, and
`group` tells the nine groups of emoji by a linear classifier on the frozen embeddings, which has
not seen those that it is tested on, after the last step.
"""

import ml_collections

from jaxvl.config import load_file, parse_arg
from jaxvl.paths import as_path

WEIGHTS = {"both": (1.0, 2.0), "caption": (0.0, 1.0), "contrast": (1.0, 0.0)}


def get_config(arg=""):
    arg = parse_arg(arg, loss="both")
    contrast, caption = WEIGHTS[arg.loss]
    c = load_file(str(as_path(__file__).with_name("align_emoji.py")))
    c.model = dict(
        name="coca",
        image=c.model.image.to_dict(),
        width=192,
        heads=4,
        hidden=512,
        unimodal=1,
        multimodal=2,
        queries=8,
        poolers="parallel",
        embed_dim=192,
        init_scale=10.0,
        tied=True,
        scan=False,
    )
    objectives = dict(
        align=dict(weight=contrast, label_smoothing=0.1, duplicates="positive"),
        captioning=dict(weight=caption, label_smoothing=0.1),
    )
    c.tasks.pairs.objectives = objectives
    parts = (
        dict(source=dict(name="emoji", split="train_a"), weight=0.92),
        dict(source=dict(name="stamps", audio=False, split="train"), weight=0.08),
    )
    c.tasks.pairs.data.source = ml_collections.ConfigDict(dict(name="mixture", parts=parts))
    c.steps = 800
    for evaluator in c.evals.values():
        evaluator.every = 200
    c.checkpoint.every = 200
    emoji = dict(name="emoji", split="test_a")
    stamps = dict(name="stamps", audio=False, split="val")
    c.evals.written = dict(
        name="captioning", source=emoji, references="name/en", every=200, scores=("cider_d",)
    )
    c.evals.stamps = dict(name="captioning", source=stamps, references="name/en", every=200)
    c.evals.likelihood = dict(name="likelihood", source=emoji, text="name/en", every=200)
    held_out = dict(name="emoji", split="test_b_new")
    c.evals.group = dict(
        name="linear_probe",
        source=held_out,
        train=dict(name="emoji", split="train_b"),
        label="group",
    )
    return c
