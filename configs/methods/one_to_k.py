"""1-to-K contrast (CCRK, Nie et al. 2024), on the generated corpus: a picture with its names in
three languages, all of them in every step.

launch/local.sh configs/methods/one_to_k.py
"""

import ml_collections

LANGUAGES = ("name/en", "name/de", "name/fr")


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="imp",
        variant="small",
        width=64,
        depth=2,
        heads=2,
        hidden=128,
        patch=8,
        patch_frames=1,
        most_frames=1,
        most_pixels=48,
        most_words=12,
        inputs=("image", "text"),
        pairs=("vision-text",),
        embed_dim=64,
        projection_hidden=128,
        init_temperature=0.1,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=192)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    text = dict(name="caption", columns=LANGUAGES, length=12, count=len(LANGUAGES), different=True)
    names = dict(image="vision>text", texts=("text>vision",), scale="log_scale/vision-text")
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(image=dict(name="picture", size=48, augment=augment), text=text),
            ),
            objectives=dict(one_to_k=dict(weight=1.0, reduction="balanced", **names)),
        )
    )
    c.steps = 300
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0),
        mrv=dict(name="mrv", source=shapes("test_a"), texts=LANGUAGES, gallery=0),
    )
    c.checkpoint = dict(every=300)
    return c
