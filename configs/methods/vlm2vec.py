"""VLM2Vec (Jiang et al. 2024) on the generated corpus: CLIP's loss on captions, then, with LoRA
alone, instructed queries under GradCache, in parts of a batch that are of one kind.

The paper adapts a pretrained model, which the first stage stands for. With a model of your own,
leave that stage out and name its weights in `c.start`.

launch/local.sh configs/methods/vlm2vec.py
"""

import ml_collections

CAPTION = "this small picture shows {}"  # as long as the instruction: all positions are trained
INSTRUCTION = "find the picture with: {}"
LENGTH = 40
LINEAR = r"attention/(query|key|value|out)$|mlp/(up|down)$"


def get_config():
    c = ml_collections.ConfigDict()
    text = dict(name="text_transformer", variant="Ti", width=64, depth=2, heads=2)
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(text, causal=True, pool="last"),
        embed_dim=64,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    c.text_length = LENGTH
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    caption = dict(name="caption", columns="name/en", length=LENGTH, template=CAPTION)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=caption,
                ),
            ),
            objectives=dict(contrast=dict(name="clip", weight=1.0)),
        )
    )
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        unseen_style=dict(
            name="candidates",
            source=shapes("test_a"),
            text="name/en",
            template=INSTRUCTION,
            gallery=0,
        )
    )
    c.steps = 200
    c.checkpoint = dict(every=200)

    # Four parts of a batch, each of one shape: negatives differ in colour and number.
    data = dict(
        batch=64,
        sampler=dict(name="per_cluster", table="shape", batch=16),
        fields=dict(text=dict(template=INSTRUCTION)),
    )
    instructed = dict(
        name="instructed",
        # Alpha and dropout are not from the paper.
        adapters=dict(low=dict(name="lora", paths=LINEAR, rank=8, alpha=16, dropout=0.1)),
        tasks=dict(
            pairs=dict(
                data=data,
                objectives=dict(contrast=dict(name="vlm2vec", weight=1.0)),
                microbatches=4,
            )
        ),
    )
    c.stages = (dict(name="base"), instructed)
    return c
