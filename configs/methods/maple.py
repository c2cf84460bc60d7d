"""MaPLe (Khattak et al. 2023) on the generated corpus: prompts of both towers, from four pictures
of each base class, for a style that the towers have not seen.

The first stage stands for CLIP's pretraining: all styles but `sketch`, and the base classes alone.
The second one trains prompts and their maps on a few sketches; the evaluator looks at other
sketches of the base classes and of the new ones.

    launch/local.sh configs/methods/maple.py
    launch/local.sh configs/methods/maple.py:coupled=False      # prompts of the texts alone
"""

import ml_collections

from jaxvl.config import parse_arg

PROMPT = "a photo of {}."
BASE_CLASSES = 128


def get_config(arg=""):
    arg = parse_arg(arg, coupled=True, seed=0)
    c = ml_collections.ConfigDict()
    text = dict(name="text_transformer", variant="Ti", width=64, depth=3, heads=2)
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(text, pool="mean"),
        embed_dim=64,
        views={"classes/text": "text"},
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    c.text_length = 24
    shapes = lambda split, **more: dict(name="shapes", size=48, split=split, **more)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0)
    picture = dict(name="picture", size=48, augment=augment)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_b"),
                batch=64,
                fields=dict(
                    image=picture,
                    text=dict(name="caption", columns="name/en", length=24, template=PROMPT),
                ),
            ),
            objectives=dict(fit=dict(name="clip", weight=1.0)),
        )
    )
    c.seed = arg.seed
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        sketches=dict(
            name="base_to_new",
            source=shapes("test_b_seen"),
            new=shapes("test_b_new"),
            templates=(PROMPT,),
        )
    )
    c.steps = 300
    c.checkpoint = dict(every=300)

    prompts = dict(name="prompts", paths="^text/", tokens=2, layers=2, mode="add", after=0)
    if arg.coupled:
        prompts["coupled"] = "^image/"
    few = dict(
        # Other places and angles than those of the evaluated sketches.
        source=shapes("test_b_seen", seed=1),
        sampler=dict(name="few_shot", k=4),
        batch=64,
        fields=dict(
            text=None,
            class_texts=dict(name="class_texts", count=BASE_CLASSES, template=PROMPT, length=24),
            class_label=dict(name="label"),
        ),
    )
    c.stages = (
        dict(name="base"),
        dict(
            name="prompts",
            adapters=dict(maple=prompts),
            tasks=dict(
                pairs=dict(
                    data=few,
                    before=dict(classes=dict(name="class_texts")),
                    objectives=dict(fit=dict(name="class_texts", weight=1.0)),
                )
            ),
            steps=150,
            # The paper: SGD, rate 0.0035, batches of 4.
            optim=dict(lr=1e-2, warmup=10, weight_decay=0.0),
            checkpoint=dict(every=150),
        ),
    )
    return c
