"""What of CoCa costs it against ALIGN at finding pictures: ALIGN's demo, changed part by part into
CoCa's, on the same rows for the same steps.

    python -m jaxvl.bench.coca_distance                                     # all runs, with a table
    launch/local.sh configs/coca_distance.py:run=pooler+queries_32,seed=1   # one of them

`run` names changes of `CHANGES`, joined by `+` and made from left to right; `align` is the start.
`size=small` takes smaller pictures, batches and fewer steps: about three minutes on two cores that
have nothing else to do; `size=demo` is that of `coca_emoji.py`.
"""

import ml_collections

from jaxvl.config import load_file, parse_arg
from jaxvl.paths import as_path

SIZES = {  # side in pixels, rows, steps
    "tiny": (16, 32, 20),
    "small": (32, 128, 400),
    "demo": (48, 256, 800),
}


def get_config(arg=""):
    arg = parse_arg(arg, run="align", seed=0, size="small", steps=0)
    side, rows, steps = SIZES[arg.size]
    c = load_file(str(as_path(__file__).with_name("coca_emoji.py")))
    c.plugins = ("jaxvl.bench.coca_parts",)
    c.seed = arg.seed
    c.preprocess.image_size = side
    c.tasks.pairs.data.batch = rows
    c.tasks.pairs.data.fields.image.size = side
    c.steps = arg.steps or steps
    align(c)
    for name in arg.run.split("+"):
        CHANGES[name](c)
    c.optim.warmup = min(60, c.steps // 10)
    c.evals = evals(c)
    c.checkpoint = dict(every=max(c.steps // 4, 1), keep=1)
    c.log = dict(every=25, tensorboard=False, report=False)
    return c


def evals(c):
    """All after the last step."""
    test = dict(name="emoji", split="test_a")
    found = dict(
        unseen_style=dict(name="zero_shot", source=test, every=c.steps),
        retrieval=dict(name="retrieval", source=test, text="name/en", every=c.steps),
    )
    if "captioning" in c.tasks.pairs.objectives:
        found["written"] = dict(
            name="captioning",
            source=test,
            references="name/en",
            every=c.steps,
            scores=("cider_d",),
        )
    return found


# --------------------------------------------------------------------------------------------------
# ALIGN's demo

CONTRAST = dict(weight=1.0, label_smoothing=0.1, duplicates="positive")
SCALE = dict(init_scale=10.0, max_scale=100.0)


def align(c):
    """ALIGN's towers and projections (as `align_emoji.py` has them), on CoCa's rows."""
    c.model = dict(
        name="dual_encoder",
        image=c.model.image.to_dict(),
        text=dict(
            name="bert", variant="tiny", depth=1, dropout=0.0, attention_dropout=0.0, scan=False
        ),
        embed_dim=192,
        projection_bias=True,
        **SCALE,
    )
    c.tasks.pairs.objectives = ml_collections.ConfigDict(dict(align=CONTRAST))


# --------------------------------------------------------------------------------------------------
# Changes

COCA_SIZES = dict(width=192, depth=1, heads=4, hidden=512)


def set_text(**text):
    def change(c):
        c.model.text = ml_collections.ConfigDict(text)

    return change


def set_model(**options):
    def change(c):
        for name, value in options.items():
            c.model[name] = value

    return change


def set_poolers(**options):
    """Options of the poolers, of CoCa's own or of an image encoder that has them."""

    def change(c):
        node = c.model.image if "encoder" in c.model.image else c.model
        for name, value in options.items():
            node[name] = value

    return change


def pooler(c):
    image = c.model.image.to_dict()
    c.model.image = ml_collections.ConfigDict(dict(name="coca_pooled", encoder=image))


def coca(c):
    """CoCa's model as `coca_emoji.py` has it, by its contrastive loss alone."""
    image = c.model.image.to_dict()
    c.model = ml_collections.ConfigDict(
        dict(
            name="coca",
            image=image,
            width=192,
            heads=4,
            hidden=512,
            unimodal=1,
            multimodal=2,
            queries=8,
            embed_dim=192,
            tied=True,
            scan=False,
            **SCALE,
        )
    )


def captions(weight):
    def change(c):
        c.tasks.pairs.objectives.captioning = ml_collections.ConfigDict(
            dict(weight=weight, label_smoothing=0.1)
        )

    return change


def more_steps(c):
    """As many as ALIGN's demo has for CoCa's 800."""
    c.steps = round(c.steps * 1100 / 800)


def emoji_rows(c):
    """ALIGN's own rows: no stamps."""
    c.tasks.pairs.data.source = ml_collections.ConfigDict(dict(name="emoji", split="train_a"))


def half_rate(c):
    c.optim.lr = c.optim.lr / 2


PLAIN_TEXT = dict(name="text_transformer", **COCA_SIZES, activation="gelu", eps=1e-5, scan=False)
CHANGES = {
    "align": lambda c: None,
    # Text tower. BERT reads both ways, normalises after its branches and pools its first token.
    "text_wide": set_text(
        name="bert", **COCA_SIZES, dropout=0.0, attention_dropout=0.0, scan=False
    ),
    "text_prenorm": set_text(**PLAIN_TEXT, pool="cls"),
    "text_mean": set_text(**PLAIN_TEXT, pool="mean"),
    "text_causal": set_text(**PLAIN_TEXT, pool="eos", causal=True),
    "text_class": set_text(name="coca_text", causal=True),
    "text_class_both_ways": set_text(name="coca_text", causal=False),
    "text_class_2_layers": set_text(name="coca_text", causal=True, depth=2),
    # Image pooling: CoCa's two poolers instead of the mean.
    "pooler": pooler,
    "queries_1": set_poolers(queries=1),
    "queries_32": set_poolers(queries=32),
    "parallel": set_poolers(poolers="parallel"),
    # Scale and projections.
    "scale_14": set_model(init_scale=1 / 0.07),
    "scale_free": set_model(max_scale=None),
    "no_bias": set_model(projection_bias=False),
    # CoCa's own model, and its other loss.
    "coca": coca,
    "captions_0.5": captions(0.5),
    "captions_1": captions(1.0),
    "captions_2": captions(2.0),
    "unimodal_2": set_model(unimodal=2),
    "untied": set_model(tied=False),
    # Schedule and rows.
    "more_steps": more_steps,
    "half_rate": half_rate,
    "emoji_rows": emoji_rows,
}
