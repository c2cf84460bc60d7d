"""Record linkage by pooled vectors (CLIPPINGS, Arora et al. 2023, arXiv 2304.03464), on the
generated corpus: drawings of one thing in several styles are its records.

Pictures and names are aligned first, as in the paper; then records of one thing are drawn together
as a whole.

launch/local.sh configs/methods/clippings.py
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=192)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    c.tasks = dict(
        records=dict(
            data=dict(
                source=shapes("train_a"),
                batch=96,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    # A thing has three names, of which a record has any.
                    text=dict(name="caption", columns="name/*", length=12),
                    class_label=dict(name="label", column="class_label"),
                ),
            ),
            objectives=dict(clip=dict(weight=1.0)),
        )
    )
    c.steps = 150
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    linked = dict(name="linkage", source=shapes("test_a"), text="name/en", gallery=0)
    c.evals = {pool: dict(linked, pool=pool) for pool in ("both", "image", "text")}
    c.checkpoint = dict(every=150)
    supervised = dict(clip=None, record_linkage=dict(weight=1.0))
    c.stages = (
        dict(name="aligned"),
        dict(
            name="linked",
            optim=dict(lr=1e-3),
            tasks=dict(records=dict(objectives=supervised)),
        ),
    )
    return c
