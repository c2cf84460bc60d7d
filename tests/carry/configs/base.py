"""The miniature that the methods here change: generated pictures of 16 pixels, two small towers."""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    tower = dict(width=16, depth=1, heads=2)
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", pool="mean", **tower),
        text=dict(name="text_transformer", variant="Ti", pool="mean", **tower),
        embed_dim=16,
    )
    c.preprocess = dict(image_size=16)
    c.tokenizer = dict(vocab_size=64)
    fields = dict(
        image=dict(name="picture", size=16),
        text=dict(name="caption", columns="name/en", length=6),
        group_id=dict(name="group", column="class_label"),
    )
    source = dict(name="shapes", size=16, variants=1, split="train_a")
    c.tasks = dict(
        pairs=dict(data=dict(source=source, batch=16, fields=fields), objectives=dict(clip=1.0))
    )
    c.steps = 4
    c.optim = dict(lr=1e-3, warmup=0)
    c.checkpoint = dict(every=100)
    c.log = dict(every=1, tensorboard=False, report=False)
    return c
