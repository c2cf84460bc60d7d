"""IMP in small: one encoder learns pictures and clips with names, and stamps with speech, in sound
and writing, in eight languages.

    launch/local.sh configs/imp_demo.py                      # a task a step, each as often as its share
    launch/local.sh configs/imp_demo.py:experts=8            # its last two layers with 8 experts, as many of them active as in one MLP
    launch/local.sh configs/imp_demo.py:mode=summed          # all tasks in every step, as many FLOP in all
    launch/local.sh configs/imp_demo.py:mode=speech          # one task alone, with its share of the steps (images, clips, speech)
    launch/local.sh configs/imp_demo.py:steps=600            # shorter, for comparisons

Concepts that `clips` and `speech` are tested on are in none of the pictures with names either, for
the emoji; the stamps of `speech` are in no other task. A run's seed is `--config.seed=1`.
"""

import ml_collections

from jaxvl.config import check, parse_arg

LANGUAGES = ("fr", "ru", "ro", "ca", "bg", "es", "be", "el")
SHARES = {"images": 2, "clips": 1, "speech": 2}  # of the steps
STEPS = 1500


def get_config(arg=""):
    arg = parse_arg(arg, mode="agd", experts=0, steps=STEPS)
    check(
        arg.mode in ("agd", "summed", *SHARES),
        "mode",
        f"{arg.mode!r} must be agd, summed, {', '.join(SHARES)}",
    )
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="imp",
        variant="small",
        width=128,
        depth=4,
        heads=4,
        hidden=512,
        patch=12,
        most_frames=8,
        most_pixels=48,
        most_steps=128,
        most_bins=64,
        most_words=16,
        log_mel=dict(frame=1024, step=256, bins=64, mean=-7.2, std=4.4),
        inputs=("image", "video", "spectrogram", "text"),
        pairs=("vision-text", "vision-audio", "audio-text"),
        embed_dim=128,
        projection_hidden=256,
        init_temperature=0.1,
        qk_norm=True,
        scan=False,
    )
    if arg.experts:
        c.model.moe = dict(last=2, experts=arg.experts, span="row")
    c.preprocess = dict(image_size=48, mean=(0.6, 0.6, 0.6), std=(0.35, 0.35, 0.35))
    c.tokenizer = dict(kind="unigram", vocab_size=8000)
    augment = dict(
        rotate=12.0,
        zoom=(0.7, 1.25),
        stretch=0.25,
        shear=0.12,
        shift=0.06,
        hue=8.0,
        saturation=(0.3, 1.6),
        grayscale=0.05,
        contrast=0.25,
        brightness=0.12,
        tint=0.05,
        outline=0.2,
        background=0.5,
    )
    emoji = lambda split: dict(name="emoji", split=split)
    motion = lambda split: dict(name="motion", split=split)
    stamps = lambda split: dict(name="stamps", split=split)
    image = dict(name="picture", size=48, augment=augment)
    video = dict(name="frames", size=48, frames=8, stride=4, augment=augment)
    text = dict(name="caption", columns={"name/en": 0.85, "keywords/en": 0.15}, length=8)
    speech = dict(
        name="waveform",
        columns="speech/*",
        languages=LANGUAGES,
        seconds=2.048,
        text="name/*",
        text_length=16,
    )
    group = dict(name="group", column="class_label")
    tasks = dict(
        images=dict(
            data=dict(
                source=emoji("train_b"),
                batch=256,
                fields=dict(image=image, text=text, group_id=group),
            ),
            encode=dict(drop=dict(image=0.25)),
        ),
        clips=dict(
            data=dict(
                source=motion("train"),
                batch=64,
                fields=dict(video=video, text=text, group_id=group),
            ),
            encode=dict(drop=dict(video=0.5)),
        ),
        speech=dict(
            data=dict(
                source=stamps("train"),
                batch=128,
                fields=dict(image=image, waveform=speech, group_id=group),
            ),
            encode=dict(drop=dict(image=0.25, spectrogram=0.25)),
        ),
    )
    for name, task in tasks.items():
        pairs = (
            ("vision-text", "vision-audio", "audio-text") if name == "speech" else ("vision-text",)
        )
        task["objectives"] = dict(nce=dict(pairs=pairs, duplicates="positive"))
        if arg.experts:
            task["objectives"]["routing"] = {}  # for the log: expert choice needs no loss
    total = sum(SHARES.values())
    c.steps = arg.steps
    if arg.mode == "agd":
        c.schedule = dict(name="weighted", weights=SHARES)
    elif arg.mode == "summed":
        # as many FLOP as `arg.steps` of one task each
        c.steps = round(arg.steps * 12 / 29)
        c.schedule = dict(name="summed")
    else:
        tasks = {arg.mode: tasks[arg.mode]}
        c.steps = arg.steps * SHARES[arg.mode] // total
    c.tasks = tasks
    c.optim = dict(
        name="muon",
        lr=8e-3,
        warmup=min(30, c.steps),
        schedule="cosine",
        final_lr=0.01,
        b1=0.95,
        b2=0.98,
        weight_decay=0.05,
        ema=0.99,
    )
    every = max(1, c.steps // 3)
    evals = dict(
        images=dict(
            unseen_style=dict(name="zero_shot", source=emoji("test_a")),
            unseen_concepts=dict(name="zero_shot", source=emoji("test_b_new")),
        ),
        clips=dict(
            clips=dict(
                name="cross_modal_retrieval",
                source=motion("test"),
                pair=("video", "text"),
                text="name/en",
                frames=8,
                stride=4,
                group="class_label",
            )
        ),
        speech=dict(
            speech=dict(
                name="cross_modal_retrieval",
                source=stamps("test"),
                pair=("image", "waveform"),
                waveform="speech/{language}",
                languages=LANGUAGES,
                seconds=2.048,
                group="class_label",
            )
        ),
    )
    c.evals = {
        name: dict(every=every, **use) for task in tasks for name, use in evals[task].items()
    }
    c.checkpoint = dict(every=every, keep=2)
    c.log = dict(every=25)
    return c
