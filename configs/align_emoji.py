"""ALIGN on the emoji corpus, from nothing to a model that knows an unseen drawing style, in fifteen
minutes on two cores.

    launch/local.sh                                   # this
    launch/local.sh configs/align_emoji.py:long       # for patient users
    launch/local.sh configs/align_emoji.py:split=b    # held-out concepts as well
    launch/local.sh configs/align_emoji.py:data=PATH  # the same recipe on pictures of your own,
    such as shards/*.tar

With `data`, `val=PATH` is searched in, image by text and back, and `benchmarks=FOLDER` measured,
instead of the emoji's own tests; `steps=…` and `batch=…` fit it to less data or time.

Split A: `unseen_style` asks 1,594 ways for OpenMoji pictures, a style that is not in training. With
`split=b` 15 % of the concepts are not in training either, and `unseen_concepts` asks for those.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs


def get_config(arg=""):
    arg = parse_arg(arg, long=False, split="a", data="", val="", benchmarks="", steps=0, batch=256)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="align",
        image=dict(
            name="efficientnet",
            variant="pico",
            stem_stride=1,
            stem_patch=4,
            norm_momentum=0.95,
            drop_connect=0.0,
        ),
        text=dict(
            name="bert", variant="tiny", depth=1, dropout=0.0, attention_dropout=0.0, scan=False
        ),
        embed_dim=192,
        init_temperature=0.1,
    )
    c.preprocess = dict(image_size=48, mean=(0.6, 0.6, 0.6), std=(0.35, 0.35, 0.35))
    c.tokenizer = dict(kind="unigram", vocab_size=6000)
    augment = dict(
        rotate=12.0,
        zoom=(0.7, 1.25),
        stretch=0.25,
        shear=0.12,
        shift=0.06,
        hue=20.0,
        saturation=(0.3, 1.6),
        grayscale=0.12,
        contrast=0.25,
        brightness=0.12,
        tint=0.05,
        posterise=0.25,
        outline=0.5,
        line_drawing=0.1,
        invert=0.03,
        background=0.5,
    )
    source, text = own_pairs(arg.data, "data", dict(name="emoji", split=f"train_{arg.split}"))
    captions = {text: 1.0} if arg.data else {text: 0.85, "keywords/en": 0.15}
    fields = dict(
        image=dict(name="picture", size=48, augment=augment),
        text=dict(name="caption", columns=captions, length=12),
        group_id=dict(name="group", column=text if arg.data else "class_label"),
    )
    data = dict(source=source, batch=arg.batch, fields=fields)
    c.tasks = dict(
        pairs=dict(
            data=data, objectives=dict(align=dict(label_smoothing=0.1, duplicates="positive"))
        )
    )
    c.steps = arg.steps or (3600 if arg.long else 1100)
    c.optim = dict(
        name="muon",
        lr=1.2e-2,
        warmup=min(60, c.steps // 10),
        schedule="cosine",
        final_lr=0.01,
        b1=0.95,
        b2=0.98,
        weight_decay=0.05,
        ema=0.99,
    )
    every = max(c.steps // 4, 1)
    c.evals = own_evals(arg.val, arg.benchmarks, every) or emoji_evals(arg.split, every)
    c.checkpoint = dict(
        every=every, keep=2
    )  # no best_metric: the evaluations are the test, and may not choose
    c.log = dict(every=25)
    return c


def emoji_evals(split, every):
    test = dict(name="emoji", split="test_a")
    evals = dict(
        unseen_style=dict(name="zero_shot", source=test, every=every),
        retrieval=dict(name="retrieval", source=test, text="name/en", every=every),
    )
    if split == "b":
        evals["unseen_concepts"] = dict(
            name="zero_shot", source=dict(name="emoji", split="test_b_new"), every=every
        )
    return evals
