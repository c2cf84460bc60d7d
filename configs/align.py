"""ALIGN as published (Jia et al. 2021): EfficientNet and BERT from scratch, LAMB, 16,384 pairs a
step.

    python -m jaxvl.train --config=configs/align.py:variant=b7,data=/data/pairs,val=/data/coco --workdir=…

`data` is whatever `python -m jaxvl.data.inspect` knows: tar shards, Parquet, a folder … `val` is
searched in, image by text and back, and `benchmarks` is a folder of standard benchmarks. Without
`data` it takes the emoji, to try it out. It is written for a pod (`mesh`: data x fsdp); on one
machine give `batch=…,steps=…`.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs

TEXT = {
    "b0": "mini",
    "b1": "mini",
    "b2": "medium",
    "b3": "medium",
    "b4": "base",
    "b5": "base",
    "b6": "base",
    "b7": "base",
    "l2": "large",
}
SIZE = 289


def get_config(arg=""):
    arg = parse_arg(
        arg,
        variant="b7",
        text="",
        fsdp=1,
        data="",
        val="",
        benchmarks="",
        batch=16384,
        steps=1_200_000,
    )
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="align",
        image=dict(name="efficientnet", variant=arg.variant, scan=True),
        text=dict(name="bert", variant=arg.text or TEXT.get(arg.variant, "base")),
        embed_dim=None,
        init_temperature=1.0,
    )
    c.preprocess = dict(image_size=SIZE)
    c.tokenizer = dict(kind="unigram", vocab_size=30522)
    source, text = own_pairs(arg.data, "data", dict(name="emoji", size=SIZE, split="train_a"))
    fields = dict(
        image=dict(name="picture", size=SIZE, augment=dict(flip=0.5, shift=0.08)),
        text=dict(name="caption", columns=text, length=64),
    )
    data = dict(source=source, batch=arg.batch, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(align=dict(label_smoothing=0.1))))
    c.steps = arg.steps
    c.optim = dict(
        name="lamb",
        lr=1e-3,
        schedule="linear",
        warmup=min(10_000, arg.steps // 10),
        weight_decay=1e-5,
        clip_norm=None,
    )
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    every = min(5000, arg.steps)
    c.evals = own_evals(arg.val, arg.benchmarks, every)
    c.checkpoint = dict(every=every)
    return c
