"""Finite discrete tokens (Chen et al. 2023) on the generated corpus: pictures and texts as sparse
sums of 256 shared codes.

The paper: 16,384 codes of 512 dimensions.

launch/local.sh configs/methods/fdt.py
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        heads=dict(codebook=dict(name="codebook", reads=("image", "text"), count=256, dim=64)),
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
            objectives=dict(fdt=1.0),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        unseen_style=dict(
            name="retrieval",
            source=shapes("test_a"),
            text="name/en",
            merge=True,
            outputs=("codebook/image", "codebook/text"),
            gallery=0,
        ),
    )
    c.checkpoint = dict(every=300)
    return c
