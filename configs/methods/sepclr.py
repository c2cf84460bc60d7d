"""SepCLR (Louiset et al. 2024), on the generated corpus: grey shapes are the background, coloured
ones the targets, so that a colour is salient.

launch/local.sh configs/methods/sepclr.py
"""

import ml_collections

GREY = 5  # class of the column `colour`


def get_config():
    c = ml_collections.ConfigDict()
    views = ("image", "image_2")
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        views=dict(image_2="image"),
        heads=dict(
            common=dict(name="projection", reads=views, dim=32),
            salient=dict(name="projection", reads=views, dim=32, normalize=False),
        ),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, outline=0.5, background=0.5)
    picture = dict(name="picture", size=48, augment=augment)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=picture,
                    image_2=picture,
                    text=dict(name="caption", columns="name/en", length=12),
                    colour=dict(name="label", column="colour"),
                ),
            ),
            objectives=dict(
                sepclr=dict(
                    weight=0.1,
                    common=tuple(f"common/{view}" for view in views),
                    salient=tuple(f"salient/{view}" for view in views),
                    target="colour",
                    background=GREY,
                    salient_weight=1.0,
                    null_weight=100.0,
                ),
                clip=1.0,
            ),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0))
    c.checkpoint = dict(every=300)
    return c
