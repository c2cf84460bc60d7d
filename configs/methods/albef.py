"""ALBEF (Li et al. 2021) on the generated corpus: contrast with a momentum teacher and its queues,
matching of pairs against hard negatives, masked words; a few minutes on two cores. So few steps
teach the contrast and the words; matching has not begun by then.

The paper's sizes: queue 65,536, decay 0.995, fusion of 6 layers, ramp 1/30 (one of 30 epochs). A run
of 300 steps has a teacher that follows faster, and a queue of four batches.

launch/local.sh configs/methods/albef.py
"""

import ml_collections

UNKNOWN = 2  # the unigram tokenizer has no [MASK], and its unknown token is in no name


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=2, heads=2, pool="mean"),
        embed_dim=64,
        min_scale=2.0,
        max_scale=1000.0,
        views=dict(masked_text="text"),
        heads=dict(
            fusion=dict(
                name="fusion",
                negatives="negatives",
                words="masked_text",
                vocab_size=128,
                depth=2,
                heads=2,
            )
        ),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    text = dict(columns="name/en", length=12)
    c.teachers = dict(momentum=dict(source="ema", decay=0.95))
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", **text),
                    masked_text=dict(name="masked_text", mask_id=UNKNOWN, share=0.3, **text),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            before=dict(
                momentum=dict(
                    name="teach", teacher="momentum", outputs=("image", "text", "fusion/words")
                ),
                negatives=dict(name="hard_negatives"),
            ),
            objectives=dict(
                itc_momentum=dict(weight=1.0, queue=256, duplicates="positive"),
                itm=1.0,
                masked_words=1.0,
            ),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.02, b2=0.98)
    c.evals = dict(unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0))
    c.checkpoint = dict(every=300)
    return c
