"""OneEncoder (Faye et al. 2024) on the generated corpus: a shared transformer compares pictures and
names, and then sounds join them, by an alignment layer alone.

The first stage stands for encoders that were pretrained apart; the paper's are a ViT, BERT and
wav2vec 2.0, and here the sounds' features are their spectrograms. `image_text` trains the universal
projection UP with alignment layers of pictures and texts, `sounds` the layer and the token of
sounds.

launch/local.sh configs/methods/one_encoder.py
"""

import ml_collections

ATTRIBUTES = dict(colour=6, shape=8, count=3)
LENGTH = 12
SIDE = 48
SECONDS = 0.4
LOG_MEL = dict(frame=1024, step=512, bins=64, mean=-6.0, std=4.0)


def get_config():
    c = ml_collections.ConfigDict()
    image = dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean")
    text = dict(name="text_transformer", variant="Ti", width=64, depth=2, heads=2, pool="mean")
    classes = {
        f"{side}_{label}": dict(name="classifier", reads=side, classes=n)
        for side in ("image", "text")
        for label, n in ATTRIBUTES.items()
    }
    c.model = dict(name="dual_encoder", image=image, text=text, embed_dim=64, heads=classes)
    c.preprocess = dict(image_size=SIDE)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    c.text_length = LENGTH
    shapes = lambda split: dict(name="shapes", size=SIDE, split=split, clips=True)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    caption = dict(name="caption", columns="name/en", length=LENGTH)
    fields = dict(image=dict(name="picture", size=SIDE, augment=augment), text=caption)
    labels = {label: dict(name="label", column=label) for label in ATTRIBUTES}
    data = dict(source=shapes("train_a"), batch=64)
    c.tasks = dict(
        apart=dict(
            data=dict(data, fields={**fields, **labels}),
            objectives={
                head: dict(name="classification", head=head, label=head.partition("_")[2])
                for head in classes
            },
        )
    )
    # The paper: 1e-3, weight decay 1e-3.
    c.optim = dict(name="adamw", lr=1e-3, warmup=30, weight_decay=1e-3, b2=0.98)
    test = dict(source=shapes("test_a"), text="name/en", gallery=0)
    c.evals = dict(pairs=dict(name="retrieval", merge=True, **test))
    c.steps = 300
    c.checkpoint = dict(every=300)

    # The paper: dim 768, depth 4, hidden 2048, dropout 0.1.
    universal = dict(name="universal", reads=("image", "text"), dim=128, depth=2, hidden=256)
    one = dict(name="frozen_encoders", image=image, text=text, heads=dict(joint=universal))
    image_text = dict(
        name="image_text",
        model=one,
        start=(dict(source="{stages.apart}", take="^(image|text)/encoder/"),),
        fresh="^heads/|^log_scale$",
        optim=dict(freeze="^(image|text)/encoder/"),
        tasks=dict(
            apart=None, pairs=dict(data=dict(data, fields=fields), objectives=dict(clip=1.0))
        ),
    )
    with_sounds = dict(universal, reads=("image", "text", "waveform"))
    own = "^heads/joint/(align|token)/waveform(/|$)"
    waveform = dict(name="waveform", columns="speech/en", seconds=SECONDS, random=False)
    sounds = dict(
        name="sounds",
        model=dict(one, log_mel=LOG_MEL, heads=dict(joint=with_sounds)),
        start=(dict(source="{stages.image_text}"),),
        fresh=own,
        optim=dict(freeze=f"^(?!{own[1:]})"),
        tasks=dict(
            apart=None,
            sounds=dict(
                data=dict(data, fields=dict(text=caption, waveform=waveform)),
                objectives=dict(nce=dict(weight=1.0, pairs=("text-audio",))),
            ),
        ),
        evals=dict(
            sounds=dict(
                name="cross_modal_retrieval",
                pair=("waveform", "text"),
                waveform="speech/en",
                seconds=SECONDS,
                **test,
            )
        ),
    )
    c.stages = (dict(name="apart"), image_text, sounds)
    return c
