"""M3EL (Hu et al. 2024) on the generated corpus: mentions are pictures with one word, a colour or a
shape, which many of the 144 entities share; entities are pictures with their whole name.

launch/local.sh configs/methods/m3el.py
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        views=dict(image_2="image", text_2="text"),
        heads=dict(matching=dict(name="entity_matching", dim=64)),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    picture = dict(name="picture", size=48, augment=augment)
    c.tasks = dict(
        links=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=picture,
                    text=dict(name="caption", columns="keywords/en", length=12),
                    image_2=picture,
                    text_2=dict(name="caption", columns="name/en", length=12),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            objectives=dict(m3el=1.0),
        )
    )
    c.steps = 200
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    # Other pictures than those that are trained with: of each entity one in each of four styles.
    other = lambda split: dict(shapes(split), variants=1, seed=1)
    c.evals = dict(
        unseen_style=dict(
            name="entity_linking",
            source=other("test_a"),
            text="keywords/en",
            entities=other("train_a"),
            entity_text="name/en",
            gallery=0,
        )
    )
    c.checkpoint = dict(every=200)
    return c
