"""The improved CLIP recipe (Fini et al. 2023), on the generated corpus with wrong captions.

launch/local.sh configs/methods/recipe.py
launch/local.sh configs/methods/recipe.py:method=barlow
launch/local.sh configs/methods/recipe.py:steps=1152      # the paper's 32 epochs

`method`: clip (the plain loss on clean views), recipe, or the recipe with one of the losses across
  modalities: simsiam, byol, barlow, swav. `noise`: share of the pictures with another one's
  name. `size` of the pictures in pixels.
"""

import ml_collections

from jaxvl.config import parse_arg

IMAGES = ("image", "image_2")
TEXTS = ("text", "text_2")


def get_config(arg=""):
    arg = parse_arg(arg, method="recipe", noise=0.3, steps=300, size=48, seed=0)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
    )
    c.preprocess = dict(image_size=arg.size)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=arg.size, split=split)
    picture = dict(name="picture", size=arg.size)
    text = dict(name="caption", columns="name/en", length=16)
    noisy = dict(
        name="replaced",
        source=shapes("train_a"),
        column="name/en",
        share=arg.noise,
        seed=arg.seed,
    )
    c.tasks = dict(
        pairs=dict(
            data=dict(source=noisy, batch=64, fields=dict(image=picture, text=text)),
            objectives=dict(clip=1.0),
        )
    )
    if arg.method != "clip":
        augmented_views(c)
    if arg.method not in ("clip", "recipe"):
        EXTRA[arg.method](c)
    c.steps = arg.steps
    c.seed = arg.seed
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    c.evals = dict(
        retrieval=dict(name="retrieval", source=shapes("test_a"), text="name/en", gallery=0),
        unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0),
    )
    c.checkpoint = dict(every=arg.steps)
    return c


def augmented_views(c):
    """A second view of picture and text, with projections and a scale of its own."""
    c.model.views = dict(image_2="image", text_2="text")
    projection = dict(name="projection", dim=64, layers=3, hidden=128, norm="batch")
    c.model.heads = dict(
        augmented_image=dict(projection, reads=("image_2",)),
        augmented_text=dict(projection, reads=("text_2",)),
        augmented_scale=dict(name="learned_scale", reads="image_2"),
    )
    fields = c.tasks.pairs.data.fields
    fields.image_2 = dict(
        fields.image.to_dict(),
        augment=dict(
            rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5
        ),
    )
    fields.text_2 = dict(fields.text.to_dict(), augment=dict(swap=0.4, delete=0.2))
    c.tasks.pairs.objectives = dict(views_clip=dict(weight=2.0, label_smoothing=0.1))


def projections(c, label, **options):
    """Heads `LABEL_image` and `LABEL_text` over both views."""
    head = dict(name="projection", normalize=False, norm="batch", hidden=128, dim=64)
    for side, views in (("image", IMAGES), ("text", TEXTS)):
        c.model.heads[f"{label}_{side}"] = dict(head, reads=views, **options)


def predictors(c):
    """Each modality's projection -> a guess of the other's; pairs of the clean views, and of the
    augmented ones."""
    projections(c, "projected", layers=2, last_norm=True)
    head = dict(name="predictor", hidden=128)
    reads = lambda side, views: tuple(f"projected_{side}/{view}" for view in views)
    c.model.heads.predicted_text = dict(head, reads=reads("image", IMAGES))
    c.model.heads.predicted_image = dict(head, reads=reads("text", TEXTS))
    found = []
    for image, text in zip(IMAGES, TEXTS):
        found.append((f"predicted_text/{image}", f"projected_text/{text}"))
        found.append((f"predicted_image/{text}", f"projected_image/{image}"))
    return found


def simsiam(c):
    c.tasks.pairs.objectives.simsiam = dict(weight=1.0, pairs=tuple(predictors(c)))


def byol(c):
    pairs = predictors(c)
    c.teachers = dict(momentum=dict(source="ema", decay=0.99))
    outputs = tuple(truth for _, truth in pairs)
    hook = dict(name="teach", teacher="momentum", outputs=outputs)
    c.tasks.pairs.before = dict(momentum=hook)
    slow = tuple((guess, f"momentum/{truth}") for guess, truth in pairs)
    c.tasks.pairs.objectives.byol = dict(weight=1.0, pairs=slow)


def barlow(c):
    projections(c, "barlow", layers=3)
    pairs = tuple((f"barlow_image/{i}", f"barlow_text/{t}") for i, t in zip(IMAGES, TEXTS))
    c.tasks.pairs.objectives.barlow = dict(weight=1.0, pairs=pairs)


def swav(c):
    projections(c, "swav", layers=2)
    reads = ("swav_image/image", "swav_text/text")
    c.model.heads.prototypes = dict(name="prototypes", reads=reads, count=64, freeze_share=0.1)
    c.tasks.pairs.objectives.swav = dict(weight=0.2)


EXTRA = dict(simsiam=simsiam, byol=byol, barlow=barlow, swav=swav)
