"""From unimodal to multimodal (Maniparambil et al. 2024) on the generated corpus: projectors on
frozen encoders, trained on features that were computed once.

The first stage stands for encoders that were pretrained apart: pictures and names learn colour,
shape and number, and nothing compares them. Its job saves their features; `jaxvl.bench.cka` tells
which pair of several such runs fits best:

    python -m jaxvl.bench.cka --images RUN/apart/tables/features:image_pooled … \\
        --texts RUN/apart/tables/features:text_pooled …

The second stage reads these columns alone, and no picture. With encoders of your own, leave the
first stage's training to them, and name their weights in `c.start`. The argument `full` trains the
encoders too, on pictures and names, which is what projectors are compared with.

launch/local.sh configs/methods/projectors.py
"""

import ml_collections

from jaxvl.config import parse_arg

COLUMNS = dict(
    image_pooled=("image", "bare/image_pooled"),
    image_tokens=("image", "bare/image_tokens"),
    text_pooled=("text", "bare/text_pooled"),
    text_tokens=("text", "bare/text_tokens"),
    text_mask=("text", "bare/text_mask"),
)
ATTRIBUTES = dict(colour=6, shape=8, count=3)
LENGTH = 12
SIDE = 48


def get_config(arg=""):
    c = ml_collections.ConfigDict()
    image = dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean")
    text = dict(name="text_transformer", variant="Ti", width=64, depth=2, heads=2, pool="mean")
    sides = ("image", "text")
    classes = {
        f"{side}_{label}": dict(name="classifier", reads=side, classes=n)
        for side in sides
        for label, n in ATTRIBUTES.items()
    }
    bare = dict(name="encoded", reads=sides)
    c.model = dict(
        name="dual_encoder", image=image, text=text, embed_dim=64, heads=dict(classes, bare=bare)
    )
    c.preprocess = dict(image_size=SIDE)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    c.text_length = LENGTH
    shapes = lambda split: dict(name="shapes", size=SIDE, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    fields = dict(
        image=dict(name="picture", size=SIDE, augment=augment),
        text=dict(name="caption", columns="name/en", length=LENGTH),
    )
    labels = {label: dict(name="label", column=label) for label in ATTRIBUTES}
    c.tasks = dict(
        apart=dict(
            data=dict(source=shapes("train_a"), batch=64, fields={**fields, **labels}),
            objectives={
                f"{side}_{label}": dict(name="classification", head=f"{side}_{label}", label=label)
                for side in sides
                for label in ATTRIBUTES
            },
        )
    )
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        pairs=dict(name="retrieval", source=shapes("test_a"), text="name/en", merge=True, gallery=0)
    )
    c.steps = 300
    c.checkpoint = dict(every=300)
    # As many pictures of every name: the 12 of 16 that are most like their mean.
    balanced = dict(name="balance", of="image", prototypes="image", each=12)
    features = dict(name="cache_features", features=(), outputs=COLUMNS, text="name/en")
    apart = dict(name="apart", after=dict(features=features, balanced=balanced))

    projector = dict(name="token_projector", reads=sides, dim=64)
    patches = (SIDE // 8) ** 2
    sizes = dict(
        image_pooled=(96,),
        image_tokens=(patches, 96),
        text_pooled=(64,),
        text_tokens=(LENGTH, 64),
        text_mask=(LENGTH,),
    )
    cached = {
        name: dict(name="array", column=f"features/{name}", shape=shape)
        for name, shape in sizes.items()
    }
    tables = {name: f"{{stages.apart}}/tables/{name}" for name in ("features", "balanced")}
    full = parse_arg(arg, full=False).full
    aligned = dict(
        name="aligned",
        model=dict(name="frozen_encoders", image=image, text=text, heads=dict(joint=projector)),
        start=(dict(source="{stages.apart}", take="^(image|text)/encoder/"),),
        fresh="^heads/|^log_scale$",
        optim={} if full else dict(freeze="^(image|text)/encoder/"),
        tasks=dict(
            apart=None,
            pairs=dict(
                data=dict(
                    source=shapes("train_a"),
                    batch=64,
                    fields=fields if full else cached,
                    tables=tables,
                    keep="balanced",
                ),
                objectives=dict(clip=1.0),
            ),
        ),
    )
    c.stages = (apart, aligned)
    return c
