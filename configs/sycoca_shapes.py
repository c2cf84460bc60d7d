"""SyCoCa on the generated corpus: captions that help to see hidden patches, in a few minutes on two
cores.

    launch/local.sh configs/sycoca_shapes.py
    launch/local.sh configs/sycoca_shapes.py:masking=random     # for comparison: patches hidden by lot

`hidden` compares the error of reconstructed patches under the right text and under another one, and
the hidden patches with those that show the shape; `written` writes captions. `caption` and `image`
are the weights of the second and third loss (the paper's lambda 1 and 2; their values are not from
the paper).
"""

import ml_collections

from jaxvl.config import parse_arg


def get_config(arg=""):
    arg = parse_arg(arg, masking="attentive", caption=2.0, image=1.0)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="sycoca",
        image=dict(
            name="vit",
            variant="Ti/6",
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
        multimodal=1,
        queries=8,
        embed_dim=64,
        init_scale=10.0,
        tied=True,
        scan=False,
        masking=arg.masking,
        masked_share=0.25,
        hidden_share=0.25,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    train, test = (dict(name="shapes", size=48, split=split) for split in ("train_a", "test_a"))
    augment = dict(rotate=10.0, zoom=(0.7, 1.1), shift=0.15)
    objectives = dict(
        clip=dict(duplicates="positive"), captioning=arg.caption, masked_image=arg.image
    )
    fields = dict(
        image=dict(name="picture", size=48, augment=augment),
        text=dict(name="caption", columns="name/en", length=12),
        group_id=dict(name="group", column="class_label"),
    )
    c.tasks = dict(
        pairs=dict(data=dict(source=train, batch=64, fields=fields), objectives=objectives)
    )
    c.steps = 500
    c.optim = dict(name="adamw", lr=3e-3, warmup=50, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        hidden=dict(name="masked_image", source=test, text="name/en", every=250, gallery=6),
        written=dict(name="captioning", source=test, references="name/en", gallery=6),
    )
    c.checkpoint = dict(every=250)
    return c
