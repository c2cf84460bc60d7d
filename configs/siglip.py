"""SigLIP (Zhai et al. 2023): two towers of one size, and a sigmoid for every pair of 32,768.

    python -m jaxvl.train --config=configs/siglip.py:variant=B/16,data=/data/pairs,val=/data/coco --workdir=…

`data`, `val`, `benchmarks`, `batch` and `steps`: see `align.py`. `--config.tokenizer.kind=siglip
  --config.tokenizer.path=spiece.model`
takes SigLIP's own vocabulary.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs
from jaxvl.models import presets


def get_config(arg=""):
    arg = parse_arg(
        arg, variant="B/16", fsdp=1, data="", val="", benchmarks="", batch=32768, steps=275_000
    )
    c = ml_collections.ConfigDict()
    c.model = presets.siglip(arg.variant)
    c.preprocess = dict(image_size=224, resize="squash")
    c.tokenizer = dict(kind="unigram", vocab_size=32000)
    source, text = own_pairs(arg.data, "data", dict(name="emoji", size=224, split="train_a"))
    fields = dict(
        image=dict(name="picture", size=224, crop=(0.05, 1.0)),
        text=dict(name="caption", columns=text, length=64),
    )
    data = dict(source=source, batch=arg.batch, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(siglip=1.0)))
    c.steps = arg.steps
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        schedule="cosine",
        warmup=min(10_000, arg.steps // 10),
        b2=0.95,
        weight_decay=1e-4,
    )
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    every = min(5000, arg.steps)
    c.evals = own_evals(arg.val, arg.benchmarks, every)
    c.checkpoint = dict(every=every)
    return c
