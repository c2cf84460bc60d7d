"""CLIP (Radford et al. 2021): ViT and a causal text transformer, softmax over 32,768 pairs.

    python -m jaxvl.train --config=configs/clip.py:variant=B/16 --workdir=…

Needs records of your own in the place of `data.source`.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.models import presets


def get_config(arg=""):
    arg = parse_arg(arg, variant="B/32", fsdp=1)
    c = ml_collections.ConfigDict()
    c.model = presets.clip(arg.variant)
    c.preprocess = dict(image_size=224, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    c.tokenizer = dict(kind="unigram", vocab_size=49408)
    fields = dict(
        image=dict(name="picture", size=224, augment=dict(shift=0.05)),
        text=dict(name="caption", columns="name/en", length=77),
    )
    data = dict(source=dict(name="emoji", size=224, split="train_a"), batch=32768, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(clip=1.0)))
    c.steps = 390_000
    c.optim = dict(name="adamw", lr=5e-4, schedule="cosine", warmup=2000, b2=0.98, eps=1e-6, weight_decay=0.2)
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    c.checkpoint = dict(every=5000)
    return c
