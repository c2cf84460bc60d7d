"""ALBEF (Li et al. 2021) on the generated corpus: contrast with a momentum teacher and its queues,
matching of pairs against hard negatives, masked words.

A hard negative is what the contrast takes for the pair itself, so matching is learned only once the
contrast tells most pairs apart. Pictures of one thing get there soon; with up to three things in a
picture (144 names) matching answered the same for every pair after 300 steps.

The paper's sizes: queue 65,536, decay 0.995, fusion of 6 layers, ramp 1/30 (one of 30 epochs). A run
of 700 steps has a teacher that follows faster, and a queue of four batches.

launch/local.sh configs/methods/albef.py
"""

import ml_collections

SIZE = 32
UNKNOWN = 2  # the unigram tokenizer has no [MASK], and its unknown token is in no name


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        # A BERT, as in the paper.
        text=dict(
            name="bert",
            variant="tiny",
            width=64,
            depth=2,
            heads=2,
            hidden=256,
            pool="mean",
            dropout=0.0,
            attention_dropout=0.0,
        ),
        embed_dim=64,
        min_scale=2.0,
        max_scale=1000.0,
        views=dict(masked_text="text"),
        heads=dict(
            fusion=dict(
                name="fusion",
                negatives="negatives",
                words="masked_text",
                vocab_size=128,
                depth=2,
                heads=2,
            )
        ),
    )
    c.preprocess = dict(image_size=SIZE)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=SIZE, split=split)
    # One thing in each picture: 48 names, of a colour and a shape.
    single = lambda split: dict(name="where", source=shapes(split), column="count", among=("1",))
    text = dict(columns="name/en", length=12)
    c.teachers = dict(momentum=dict(source="ema", decay=0.95))
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=single("train_a"),
                batch=32,
                fields=dict(
                    image=dict(name="picture", size=SIZE),
                    text=dict(name="caption", **text),
                    masked_text=dict(name="masked_text", mask_id=UNKNOWN, share=0.3, **text),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            before=dict(
                momentum=dict(
                    name="teach", teacher="momentum", outputs=("image", "text", "fusion/words")
                ),
                negatives=dict(name="hard_negatives"),
            ),
            objectives=dict(
                itc_momentum=dict(weight=1.0, queue=128, duplicates="positive"),
                itm=1.0,
                masked_words=1.0,
            ),
        )
    )
    c.steps = 700
    # To a tenth of the rate, as in the paper.
    optim = dict(name="adamw", lr=2e-3, final_lr=0.1, warmup=30)
    c.optim = dict(optim, weight_decay=0.02, b2=0.98)
    c.evals = dict(
        unseen_style=dict(name="retrieval", source=single("test_a"), text="name/en", gallery=0)
    )
    c.checkpoint = dict(every=700)
    return c
