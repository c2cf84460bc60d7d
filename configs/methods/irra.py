"""IRRA (Jiang and Ye 2023) on the generated corpus: similarity distribution matching, words that
are hidden from the text and found in the image, and a classifier of identities.

A concept stands for a person: it has several pictures, and a batch may hold some of them. The
paper starts from CLIP; its layers have 8 heads, and 15 % of the tokens are hidden.

launch/local.sh configs/methods/irra.py
"""

import ml_collections

UNKNOWN = 2  # the unigram tokenizer has no [MASK], and its unknown token is in no name
CONCEPTS = 144


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=96, depth=1, heads=3, pool="mean"),
        embed_dim=64,
        views=dict(masked_text="text"),
        heads=dict(
            identity=dict(name="classifier", reads=("image", "text"), classes=CONCEPTS),
            fusion=dict(
                name="fusion",
                matching=False,
                words="masked_text",
                vocab_size=128,
                cross="first",
                depth=4,
                heads=3,
                activation="quick_gelu",
            ),
        ),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    text = dict(columns="name/en", length=12)
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
                    class_label=dict(name="label", column="class_label"),
                ),
            ),
            objectives=dict(
                sdm=1.0,
                masked_words=dict(weight=1.0, teacher=None),
                image_identity=dict(name="classification", weight=0.5, head="identity/image"),
                text_identity=dict(name="classification", weight=0.5, head="identity/text"),
            ),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0))
    c.checkpoint = dict(every=300)
    return c
