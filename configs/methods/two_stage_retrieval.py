"""CLIP for picture retrieval with its alignment kept, in two stages (2SFT of Schall et al. 2024,
arXiv 2409.01936), on the generated corpus.

After CLIP's own training the image tower learns to tell classes apart by an additive angular
margin, which moves it away from the texts; then it is frozen, and the text tower follows it. The
margin is on the pooled output itself, which is the embedding (`projections="text"`).

launch/local.sh configs/methods/two_stage_retrieval.py
"""

import ml_collections

CLASSES = 144  # of the generated corpus


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        projections="text",
        heads=dict(
            identity=dict(name="classifier", reads="image", classes=CLASSES, margin=0.3, scale=16.0)
        ),
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
                    class_label=dict(name="label", column="class_label"),
                ),
            ),
            objectives=dict(clip=dict(weight=1.0)),
        )
    )
    c.steps = 150
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        pictures=dict(name="image_knn", source=shapes("test_a"), depth=100, gallery=0),
        texts=dict(name="retrieval", source=shapes("test_a"), text="name/en", gallery=0),
    )
    c.checkpoint = dict(every=150)
    margin = dict(clip=None, classification=dict(weight=1.0, head="identity"))
    c.stages = (
        dict(name="clip"),
        dict(name="pictures", tasks=dict(pairs=dict(objectives=margin))),
        dict(name="texts", optim=dict(lr=1e-3, freeze=r"^image/encoder/")),
    )
    return c
