"""ALIGN on the generated corpus: no download, a few minutes on two cores.

launch/local.sh configs/align_shapes.py
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="align",
        image=dict(name="efficientnet", variant="pico", stem_stride=1, stem_patch=4, depth=0.5),
        text=dict(name="bert", variant="tiny"),
        embed_dim=128,
        init_temperature=0.1,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(
        rotate=10.0,
        zoom=(0.75, 1.2),
        shift=0.1,
        hue=8.0,
        saturation=(0.5, 1.3),
        contrast=0.2,
        brightness=0.1,
        outline=0.5,
        background=0.5,
    )
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_b"),
                batch=128,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(
                        name="caption",
                        columns={"name/en": 0.7, "name/de": 0.15, "name/fr": 0.15},
                        length=12,
                    ),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            objectives=dict(align=dict(weight=1.0, label_smoothing=0.05, duplicates="positive")),
        )
    )
    c.steps = 600
    c.optim = dict(name="adamw", lr=2e-3, warmup=50, weight_decay=0.05, b2=0.98, ema=0.99)
    c.evals = dict(
        seen_style=dict(name="zero_shot", source=shapes("test_b_train_styles"), every=200),
        unseen_style=dict(name="zero_shot", source=shapes("test_a"), every=200),
        unseen_concepts=dict(name="zero_shot", source=shapes("test_b_new"), every=200),
        retrieval=dict(name="retrieval", source=shapes("test_a"), text="name/en"),
    )
    c.checkpoint = dict(every=200, best_metric="unseen_style/acc@1")
    return c
