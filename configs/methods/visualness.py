"""Visualness of texts (TIP-CLIP, Verma et al. 2023), on the generated corpus: every second picture
stands beside a sentence that says nothing of it.

launch/local.sh configs/methods/visualness.py
"""

import itertools

import ml_collections

OPENINGS = ("thank you", "we are glad", "please write", "it is good", "they were late", "he hopes")
ENDINGS = ("for your time", "to hear from you", "before monday", "as a rule", "once again", "then")


def sentences(remainder):
    """Sentences in one of two parts, so that those of the test are not those of training."""
    pairs = itertools.product(range(len(OPENINGS)), range(len(ENDINGS)))
    return tuple(f"{OPENINGS[i]} {ENDINGS[j]}" for i, j in pairs if (i + j) % 2 == remainder)


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        heads=dict(null=dict(name="null_vector", reads="text", dim=64)),
    )
    c.preprocess = dict(image_size=24)
    c.tokenizer = dict(kind="unigram", vocab_size=160)
    shapes = lambda split: dict(name="shapes", size=24, split=split)
    mixed = lambda split, part: dict(
        name="replaced",
        source=shapes(split),
        column="name/en",
        share=0.5,
        flag="visual",
        texts=sentences(part),
    )
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=mixed("train_b", 0),
                batch=64,
                fields=dict(
                    image=dict(name="picture", size=24),
                    text=dict(name="caption", columns="name/en", length=16),
                    visual=dict(name="label", column="visual"),
                ),
            ),
            objectives=dict(visualness=1.0),
        )
    )
    c.steps = 200
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        visualness=dict(
            name="visualness", source=mixed("test_b_new", 1), text="name/en", gallery=0
        ),
        unseen_style=dict(name="zero_shot", source=shapes("test_b_seen"), gallery=0),
    )
    c.checkpoint = dict(every=200)
    return c
