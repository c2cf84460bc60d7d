"""Hard negatives by modality (MM-Embed, Lin et al. 2024, arXiv 2411.02571), on the generated
corpus: German names ask for pictures, and English names are in the pool beside them.

The first stage knows the negatives of its batches, which are pictures alone, and finds texts where
it is asked for pictures. A job then mines of each query a text that it finds before its picture,
and a picture from rank 46 on; the second stage has them as further negatives.

launch/local.sh configs/methods/mm_embed.py
"""

import ml_collections

QUERY = "name/de"
DOCUMENT = "name/en"


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        views=dict(document="text"),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=160)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=96,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", columns=QUERY, length=12),
                    document=dict(name="caption", columns=DOCUMENT, length=12),
                ),
            ),
            objectives=dict(clip=dict(weight=1.0)),
        )
    )
    c.steps = 150
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    pool = dict(query=QUERY, document=DOCUMENT, group="class_label")
    c.evals = dict(pool=dict(name="mixed_pool", source=shapes("test_a"), gallery=0, **pool))
    c.checkpoint = dict(every=150)
    mined = dict(name="mine_negatives", text=QUERY, document=DOCUMENT, group="class_label")
    with_negatives = dict(
        tables=dict(mined="{stages.one}/tables/mined"),
        sampler=dict(name="with_negatives", table="mined"),
    )
    second = dict(
        data=with_negatives,
        # None takes the first stage's objective away.
        objectives=dict(clip=None, hard_nce=dict(weight=1.0)),
    )
    c.stages = (
        dict(name="one", after=dict(mined=mined)),
        dict(name="two", optim=dict(lr=1e-3), tasks=dict(pairs=second)),
    )
    return c
