"""CoCa (Yu et al. 2022): a contrastive captioner, 65,536 pairs a step, both losses.

    python -m jaxvl.train --config=configs/coca.py:variant=base,data=/data/pairs,val=/data/coco --workdir=…

`data`, `val`, `benchmarks`, `batch` and `steps`: see `align.py`.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs
from jaxvl.models import presets


def get_config(arg=""):
    arg = parse_arg(
        arg, variant="base", fsdp=1, data="", val="", benchmarks="", batch=65536, steps=500_000
    )
    c = ml_collections.ConfigDict()
    c.model = presets.coca(arg.variant)
    c.preprocess = dict(image_size=288)
    c.tokenizer = dict(kind="unigram", vocab_size=64000)
    source, text = own_pairs(arg.data, "data", dict(name="emoji", size=288, split="train_a"))
    fields = dict(
        image=dict(name="picture", size=288, crop=(0.5, 1.0)),
        text=dict(name="caption", columns=text, length=64),
    )
    data = dict(source=source, batch=arg.batch, fields=fields)
    c.tasks = dict(pairs=dict(data=data, objectives=dict(clip=1.0, captioning=2.0)))
    c.steps = arg.steps
    c.optim = dict(
        name="adafactor",
        lr=8e-4,
        schedule="linear",
        warmup=max(1, arg.steps // 50),
        weight_decay=0.01,
    )
    c.mesh = dict(data=-1, fsdp=arg.fsdp)
    c.dtype = "bfloat16"
    every = min(5000, arg.steps)
    c.evals = own_evals(arg.val, arg.benchmarks, every)
    if arg.val:
        source, text = own_pairs(arg.val, "val", {})
        c.evals.captions = dict(name="captioning", source=source, references=text, every=every)
    c.checkpoint = dict(every=every)
    return c
