"""Contrast of mixtures, then of soft targets (M3CoL, 2024), on the generated corpus.

launch/local.sh configs/methods/m3col.py
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
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", columns="name/en", length=12),
                ),
            ),
            objectives=dict(m3col=1.0),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0),
        gap=dict(name="gap", source=shapes("test_a"), text="name/en", gallery=0),
    )
    c.checkpoint = dict(every=300)
    return c
