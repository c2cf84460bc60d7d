"""Record linkage by pooled vectors (CLIPPINGS, Arora et al. 2023, arXiv 2304.03464), on the
generated corpus: drawings of one thing in several styles are its records.

Pictures and names are aligned first, as in the paper; then records of one thing are drawn together
as a whole. Half of the records have lost their name, and those that are linked are drawn in a style
that was never seen: neither the text nor the picture is enough.

launch/local.sh configs/methods/clippings.py
launch/local.sh configs/methods/clippings.py:seed=1
"""

import ml_collections

from jaxvl.config import parse_arg

UNNAMED = ("no name", "unknown", "to be named")


def get_config(arg=""):
    arg = parse_arg(arg, seed=0, lost=0.5)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=192)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    unnamed = lambda split: dict(
        name="replaced",
        source=shapes(split),
        column="name/en",
        share=arg.lost,
        texts=UNNAMED,
        flag="named",
        seed=arg.seed,
    )
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    c.tasks = dict(
        records=dict(
            data=dict(
                source=unnamed("train_a"),
                batch=96,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", columns="name/en", length=12),
                    class_label=dict(name="label", column="class_label"),
                ),
            ),
            objectives=dict(clip=dict(weight=1.0)),
        )
    )
    c.steps = 600
    c.seed = arg.seed
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    linked = dict(name="linkage", source=unnamed("test_a"), text="name/en", gallery=0)
    c.evals = {pool: dict(linked, pool=pool) for pool in ("both", "image", "text")}
    c.checkpoint = dict(every=600)
    supervised = dict(clip=None, record_linkage=dict(weight=1.0))
    c.stages = (
        dict(name="aligned"),
        dict(
            name="linked",
            optim=dict(lr=1e-3),
            tasks=dict(records=dict(objectives=supervised)),
        ),
    )
    return c
