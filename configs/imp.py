"""IMP as published (Akbari et al. 2023): one encoder with 16 experts (small: 4) in its last six
layers, one task a step.

    python -m jaxvl.train --config=configs/imp.py:variant=large,fsdp=8,expert=4 --workdir=…
    python -m jaxvl.plan --config=configs/imp.py:variant=large,fsdp=4,expert=4 --topology=v5p:4x4x4

Its tasks are those with contrastive losses: of the classification tasks that the paper adds, with
their own intervals, there is none, as there are no records for them (a class head and how a task
uses it: tests/training/test_class_heads.py). Batches, intervals, resolutions and drop rates are the
paper's and its code's; the paper's text draws tasks at random (`schedule=dict(name="weighted",
…)`), its code takes them by interval, as here. It is written for a pod (`mesh`: data x fsdp x
expert).

`data=/data/pairs` takes pictures with texts of your own, and the task of these alone; videos and
sounds of your own take the place of `motion` and `stamps` below. `val`, `benchmarks`, `batch` and
`steps`: see `align.py`.
"""

import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs

PEAK = {"small": 8e-4, "base": 1e-3, "large": 5e-4}
STEPS = {"small": 200_000}
WARMUP = {"small": 10_000, "base": 25_000}


def get_config(arg=""):
    arg = parse_arg(
        arg,
        variant="base",
        experts=-1,
        fsdp=1,
        expert=1,
        data="",
        val="",
        benchmarks="",
        batch=8192,
        steps=0,
    )
    published = 4 if arg.variant == "small" else 16
    experts = arg.experts if arg.experts >= 0 else published  # 0: dense
    c = ml_collections.ConfigDict()
    pairs = ("vision-text", "vision-audio", "audio-text")
    c.model = dict(
        name="imp",
        variant=arg.variant,
        inputs=("image", "video", "spectrogram", "text"),
        pairs=pairs,
        log_mel={},
        remat="full",
    )
    if experts:
        c.model.moe = dict(last=6, experts=experts)
    c.preprocess = dict(image_size=256)
    c.tokenizer = dict(kind="unigram", vocab_size=32100)
    source, column = own_pairs(arg.data, "data", dict(name="emoji", size=256, split="train_a"))
    motion = dict(name="motion", size=256, split="train")
    stamps = dict(name="stamps", size=256, split="train")
    image = dict(name="picture", size=256)
    text = dict(name="caption", columns=column, length=16)
    name_text = dict(name="caption", columns="name/en", length=16)
    frames = lambda size: dict(name="frames", size=size, frames=16, stride=2)
    speech = dict(name="waveform", columns="speech/*", seconds=8.192, text="name/*", text_length=16)
    c.tasks = dict(
        image_text=dict(data=dict(source=source, fields=dict(image=image, text=text))),
        video_text=dict(
            data=dict(source=motion, fields=dict(video=frames(256), text=name_text)),
            encode=dict(drop=dict(video=0.75)),
        ),
        small_video_text=dict(
            data=dict(source=motion, fields=dict(video=frames(128), text=name_text))
        ),
        audio_text=dict(data=dict(source=stamps, fields=dict(image=image, waveform=speech))),
    )
    if arg.data:
        c.tasks = dict(image_text=c.tasks.image_text)
    for name, task in c.tasks.items():
        task.data.batch = arg.batch
        task.objectives = dict(nce=dict(pairs=pairs if name == "audio_text" else pairs[:1]))
        if experts:
            task.objectives["routing"] = {}  # for the log: expert choice needs no loss
    if not arg.data:
        c.schedule = dict(
            name="round_robin", intervals=dict(video_text=12, small_video_text=12, audio_text=12)
        )
    c.steps = arg.steps or STEPS.get(arg.variant, 500_000)
    peak = PEAK.get(arg.variant, 5e-4)
    warmup = min(WARMUP.get(arg.variant, 50_000), max(1, c.steps // 10))
    c.optim = dict(
        name="adamw",
        lr=peak,
        warmup=warmup,
        schedule="cosine",
        final_lr=1e-6 / peak,
        b1=0.9,
        b2=0.999,
        eps=1e-7,
        weight_decay=1e-4,
        clip_norm=1.0,
        unused="decay",
    )
    c.mesh = dict(data=-1, fsdp=arg.fsdp, expert=arg.expert)
    c.dtype = "bfloat16"
    every = min(5000, c.steps)
    c.evals = own_evals(arg.val, arg.benchmarks, every)
    c.checkpoint = dict(every=every)
    return c
