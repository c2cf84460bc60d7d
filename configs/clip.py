"""CLIP (Radford et al. 2021): ViT and a causal text transformer, softmax over 32,768 pairs.

    python -m jaxvl.train --config=configs/clip.py:variant=B/16,data=/data/pairs,val=/data/coco,benchmarks=/data/benchmarks --workdir=…

`data`, `val`, `benchmarks`, `batch` and `steps`: see `align.py`. `vocabulary=clip` takes CLIP's own
  byte pairs, which open_clip carries.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs
from jaxvl.models import presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        variant="B/32",
        fsdp=1,
        data="",
        val="",
        benchmarks="",
        batch=32768,
        steps=390_000,
        vocabulary="unigram",
    )
    c = ml_collections.ConfigDict()
    c.model = presets.clip(arg.variant)
    c.preprocess = dict(
        image_size=224,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    c.tokenizer = dict(kind=arg.vocabulary, vocab_size=49408)
    source, text = own_pairs(arg.data, "data", dict(name="emoji", size=224, split="train_a"))
    fields = dict(
        image=dict(name="picture", size=224, crop=(0.9, 1.0)),
        text=dict(name="caption", columns=text, length=77),
    )
    data = dict(source=source, batch=arg.batch, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(clip=1.0)))
    c.steps = arg.steps
    warmup = min(2000, arg.steps // 10)
    c.optim = dict(
        name="adamw", lr=5e-4, schedule="cosine", warmup=warmup, b2=0.98, eps=1e-6, weight_decay=0.2
    )
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    every = min(5000, arg.steps)
    c.evals = own_evals(arg.val, arg.benchmarks, every)
    c.checkpoint = dict(every=every)
    return c
