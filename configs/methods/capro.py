"""CAPro (Qin et al. 2023, arXiv 2310.09761) on the generated corpus, with labels and texts as they
come from the web: 40 % of the labels and 30 % of the names are another record's.

    texts   pictures and names are contrasted, and a class head learns the labels as they are; then
            seeds are found by the texts. The paper's text vectors are those of a language model.
    clean   prototypes, which correct the labels from the first ninth of the run on
    final   the class head learns the labels that are kept or corrected

The paper's sizes: 50 seeds of a class, queue 8,192, decays 0.999 of prototypes and teacher. Two
hundred steps have a faster teacher and a queue of four batches.

launch/local.sh configs/methods/capro.py
"""

import ml_collections

from jaxvl.config import parse_arg

LABEL = "colour"  # a column of six classes


def get_config(arg=""):
    seed = parse_arg(arg, seed=0).seed
    c = ml_collections.ConfigDict()
    c.seed = seed
    views = ("image", "image_2")
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
        views=dict(image_2="image"),
        heads=dict(
            projected=dict(name="projection", reads=views, dim=32),
            kind=dict(name="classifier", reads="image", classes=6),
        ),
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    c.text_length = 12  # in stages without a text too
    shapes = lambda split, **more: dict(name="shapes", size=48, split=split, **more)
    texts = dict(name="replaced", column="name/en", share=0.3, source=shapes("train_a"), seed=seed)
    web = dict(
        name="replaced", column=LABEL, share=0.4, flag="own_label", source=texts, seed=seed + 100
    )
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    picture = dict(name="picture", size=48, augment=augment)
    classified = dict(name="classification", head="kind", label="kind", weight=1.0)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=web,
                batch=64,
                fields=dict(
                    image=picture,
                    text=dict(name="caption", columns="name/en", length=12),
                    kind=dict(name="label", column=LABEL),
                ),
            ),
            objectives=dict(clip=dict(weight=1.0), classification=classified),
        )
    )
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.steps = 200
    c.checkpoint = dict(every=200)
    of = dict(source=shapes("train_a", seed=1), label=LABEL, gallery=0)
    c.evals = dict(
        kind=dict(name="class_head", head="kind", **of),
        neighbours=dict(name="image_knn", output="projected/image", **of),
    )

    seeds = dict(name="text_seeds", label=LABEL, text="name/en", count=50)
    cleaned = dict(
        name="prototype_clean",
        head="kind",
        projected="projected/image",
        label=LABEL,
        seed="seeds/seed",
    )
    clean = dict(
        name="clean",
        teachers=dict(momentum=dict(source="ema", decay=0.95)),
        tasks=dict(
            pairs=dict(
                data=dict(
                    tables=dict(seeds="{stages.texts}/tables/seeds"),
                    fields=dict(
                        text=None,
                        image_2=picture,
                        seed=dict(name="label", column="seeds/seed"),
                    ),
                ),
                before=dict(
                    momentum=dict(
                        name="teach",
                        teacher="momentum",
                        outputs=("projected/image_2", "logits/kind"),
                    )
                ),
                objectives=dict(
                    clip=None,
                    classification=None,
                    capro=dict(
                        weight=1.0,
                        head="kind",
                        projected="projected/image",
                        key="projected/image_2",
                        label="kind",
                        queue=256,
                    ),
                ),
            )
        ),
        after=dict(cleaned=cleaned),
    )
    final = dict(
        name="final",
        tasks=dict(
            pairs=dict(
                data=dict(
                    tables=dict(cleaned="{stages.clean}/tables/cleaned"),
                    keep="cleaned/keep",
                    fields=dict(text=None, kind=dict(column="cleaned/label")),
                ),
                objectives=dict(clip=None),
            )
        ),
    )
    c.stages = (dict(name="texts", after=dict(seeds=seeds)), clean, final)
    return c
