"""COSMO on the generated corpus, four pictures and their names to a row, in a few minutes on two
cores.

    launch/local.sh configs/cosmo_shapes.py
    launch/local.sh configs/cosmo_shapes.py:across=False     # a name sees nothing of the names before it

`rows` says how much dearer captions become where each picture stands in the place of the next;
`written` and `classes` ask for single pictures. The weight of the contrast, and the split of the
decoder, are not from the paper.
"""

import ml_collections

from jaxvl.config import parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, images=4, across=True, contrast=0.5)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="cosmo",
        image=dict(
            name="vit",
            variant="Ti/8",
            width=64,
            depth=2,
            heads=2,
            hidden=192,
            pool="mean",
            scan=False,
        ),
        width=64,
        heads=2,
        hidden=192,
        unimodal=1,
        multimodal=2,
        queries=8,
        embed_dim=64,
        init_scale=10.0,
        tied=True,
        scan=False,
        across=arg.across,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    train, test = (dict(name="shapes", size=48, split=split) for split in ("train_a", "test_a"))
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, outline=0.3, background=0.3)
    rows = dict(records=arg.images, length=8 * arg.images)  # a name has 8 tokens at most
    c.tasks = dict(
        rows=dict(
            data=dict(
                source=train,
                batch=16,
                interleave=rows,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", columns="name/en", length=12),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            objectives=dict(captioning=1.0, clip=dict(weight=arg.contrast, duplicates="positive")),
        )
    )
    c.steps = 500
    c.optim = dict(name="adamw", lr=3e-3, warmup=50, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        rows=dict(name="interleaved", source=test, text="name/en", every=250, interleave=rows),
        written=dict(name="captioning", source=test, references="name/en", gallery=6),
        classes=dict(name="zero_shot", source=test, gallery=6),
    )
    c.checkpoint = dict(every=250)
    return c
