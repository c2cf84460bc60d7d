"""CoCa on the emoji corpus: one model that finds pictures by their names and writes names under pictures.

    launch/local.sh configs/coca_emoji.py                    # both losses
    launch/local.sh configs/coca_emoji.py:loss=caption       # the paper's ablation: one of them alone
    launch/local.sh configs/coca_emoji.py:loss=contrast

The captions are those of `align_emoji.py`, of which this has the image encoder, data and steps; `written` writes names of
OpenMoji pictures, a style that is not in training, `likelihood` is how likely their right names are, and `group` tells the nine
groups of emoji by a linear classifier on the frozen embeddings, which has not seen those that it is tested on, after the last step.
"""

import pathlib

from jaxvl.config import load_file, parse_arg

WEIGHTS = {"both": (1.0, 2.0), "caption": (0.0, 1.0), "contrast": (1.0, 0.0)}


def get_config(arg=""):
    arg = parse_arg(arg, loss="both")
    contrast, caption = WEIGHTS[arg.loss]
    c = load_file(str(pathlib.Path(__file__).with_name("align_emoji.py")))
    c.model = dict(
        name="coca", image=c.model.image.to_dict(), width=192, heads=4, hidden=512, unimodal=1, multimodal=2, queries=8, embed_dim=192,
        init_scale=10.0, tied=True, scan=False,
    )  # fmt: skip
    objectives = dict(
        align=dict(weight=contrast, label_smoothing=0.1, duplicates="positive"), captioning=dict(weight=caption, label_smoothing=0.1)
    )
    c.tasks.pairs.objectives = objectives
    c.evals.written = dict(name="captioning", corpus=dict(name="emoji"), split="test_a", every=c.steps // 4, scores=("cider_d",))
    c.evals.likelihood = dict(name="likelihood", corpus=dict(name="emoji"), split="test_a", every=c.steps // 4)
    c.evals.group = dict(name="linear_probe", corpus=dict(name="emoji"), split="test_b_new", train_split="train_b", label="group")
    return c
