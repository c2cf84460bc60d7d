"""CLOSE (Gu, Clark and Kembhavi 2023) on the generated corpus: a captioner that learns from names
alone and then writes those of pictures.

The paper starts from CLIP, which the first stage stands for, and from T5, for which nothing stands
here: the decoder begins anew. No step of the second stage reads a picture.

With `adapter` the texts are moved to where images lie by pairs of the first stage's source, and the
second stage reads these embeddings instead of the text tower:

launch/local.sh configs/methods/close.py
launch/local.sh configs/methods/close.py:adapter=shift      # or linear, covariance
"""

import ml_collections

from jaxvl.config import parse_arg

WIDTH = 64  # of the embedding space


def get_config(arg=""):
    adapter = parse_arg(arg, adapter="none").adapter
    c = ml_collections.ConfigDict()
    towers = dict(
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=WIDTH,
    )
    c.model = dict(name="dual_encoder", **towers)
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split, **more: dict(name="shapes", size=48, split=split, **more)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    caption = dict(name="caption", columns="name/en", length=12)
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
            objectives=dict(clip=1.0),
        )
    )
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(seen_style=dict(name="zero_shot", source=shapes("train_a", seed=1), gallery=0))
    c.steps = 300
    c.checkpoint = dict(every=300)

    fields = dict(text=caption)
    data = dict(source=shapes("train_a"), batch=64)
    after = {}
    condition = "text"
    if adapter != "none":
        after = dict(moved=dict(name="text_to_image", how=adapter, text="name/en"))
        data["tables"] = dict(moved="{stages.towers}/tables/moved")
        fields["moved"] = dict(name="array", column="moved", shape=(WIDTH,))
        condition = "moved"
    written = dict(
        name="captioning",
        source=shapes("train_a", seed=1),
        references="name/en",
        generation=dict(max_length=12),
        gallery=0,
    )
    captioner = dict(
        name="captioner",
        model=dict(
            name="close",
            condition=condition,
            width=64,
            heads=2,
            hidden=256,
            unimodal=1,
            multimodal=1,
            prefix_layers=1,
            **towers,
        ),
        start=(dict(source="{stages.towers}", take=r"^(image|text)/|^log_scale$"),),
        fresh=r"^(?!image/|text/|log_scale$)",
        optim=dict(freeze=r"^(image|text)/|^log_scale$"),
        tasks=dict(
            pairs=None,
            captions=dict(data={**data, "fields": fields}, objectives=dict(captioning=1.0)),
        ),
        evals=dict(seen_style=None, written=written),
    )
    c.stages = (dict(name="towers", after=after), captioner)
    return c
