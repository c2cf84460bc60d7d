"""ALIGN as published (Jia et al. 2021): EfficientNet and BERT from scratch, LAMB, 16,384 pairs a step.

    python -m jaxvl.train --config=configs/align.py:variant=b7 --workdir=… --config.tokenizer.path=vocab.txt

Needs records of your own in the place of `data.source`; it is written for a pod (`mesh`: data x fsdp).
"""

import ml_collections

from jaxvl.config import parse_arg

TEXT = {"b0": "mini", "b1": "mini", "b2": "medium", "b3": "medium", "b4": "base", "b5": "base", "b6": "base", "b7": "base", "l2": "large"}


def get_config(arg=""):
    arg = parse_arg(arg, variant="b7", text="", fsdp=1)
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="align",
        image=dict(name="efficientnet", variant=arg.variant),
        text=dict(name="bert", variant=arg.text or TEXT[arg.variant]),
        embed_dim=None,
        init_temperature=1.0,
    )
    c.preprocess = dict(image_size=289)
    c.tokenizer = dict(kind="unigram", vocab_size=30522)
    fields = dict(
        image=dict(name="picture", size=289, augment=dict(flip=0.5, shift=0.08)),
        text=dict(name="caption", columns="name/en", length=64),
    )
    data = dict(source=dict(name="emoji", size=289, split="train_a"), batch=16384, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(align=dict(label_smoothing=0.1))))
    c.steps = 1_200_000
    c.optim = dict(name="lamb", lr=1e-3, schedule="linear", warmup=10_000, weight_decay=1e-5, clip_norm=None)
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    c.checkpoint = dict(every=5000)
    return c
