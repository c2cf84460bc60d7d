"""COCONUT (Cappellazzo et al. 2023) on the generated corpus: sounds of 48 names after those of 48
others, in three tasks, each a stage.

The teacher is the model at the end of the last stage; a quarter of the rows is rehearsed, from a
buffer of a record for each name. How much is forgotten is in the evaluators' figures of
all stages (`jaxvl.evals.forgetting`). The paper's decoder, which writes intents, is a class head
here.

launch/local.sh configs/methods/coconut.py
launch/local.sh configs/methods/coconut.py:replay     # rehearsed rows alone, to compare
"""

import ml_collections

from jaxvl.config import parse_arg

SECONDS = 0.4
NAMES = 48  # of a task; a name is a class


def get_config(arg=""):
    arg = parse_arg(arg, replay=False, seed=0)
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.model = dict(
        name="imp",
        variant="small",
        width=64,
        depth=2,
        heads=4,
        hidden=256,
        spectrogram_patch=8,
        most_steps=64,
        most_bins=32,
        most_words=16,
        log_mel=dict(frame=512, step=200, bins=32, mean=-7.2, std=4.4),
        inputs=("spectrogram", "text"),
        pairs=("audio-text",),
        classes=dict(name=3 * NAMES),
        embed_dim=64,
        projection_hidden=128,
        init_temperature=0.1,
        scan=False,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split, clips=True)
    of = lambda split, *tasks: dict(
        name="where",
        source=shapes(split),
        column="class_label",
        among=tuple(NAMES * task + i for task in tasks for i in range(NAMES)),
    )
    classes = dict(classes=dict(name="audio"))
    c.tasks = dict(
        speech=dict(
            data=dict(
                source=of("train_a", 0),
                batch=64,
                fields=dict(
                    waveform=dict(name="waveform", columns="speech/en", seconds=SECONDS),
                    text=dict(name="caption", columns="name/en", length=12),
                    class_label=dict(name="label", column="class_label"),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            encode=classes,
            objectives=dict(
                nce=dict(weight=1.0, pairs=("audio-text",), duplicates="positive"),
                classification=dict(weight=1.0, head="name"),
            ),
        )
    )
    c.steps = 120
    c.optim = dict(name="adamw", lr=2e-3, warmup=20, weight_decay=0.05, b2=0.98)
    c.evals = {
        f"task_{i}": dict(
            name="cross_modal_retrieval",
            source=of("test_a", i),
            pair=("waveform", "text"),
            waveform="speech/en",
            text="name/en",
            seconds=SECONDS,
            group="class_label",
            gallery=0,
        )
        for i in range(3)
    }
    c.checkpoint = dict(every=120)

    def after(stage: str, task: int) -> dict:
        """A task, after a stage that has learned all before it."""
        old = task * NAMES
        parts = (
            dict(name="new", source=of("train_a", task), weight=1.0),
            dict(name="old", source=of("train_a", *range(task)), weight=1.0),
        )
        data = dict(
            source=dict(name="mixture", parts=parts),
            sampler=dict(name="replay", parts=("old",), share=0.25, buffer=old),
        )
        if arg.replay:
            return dict(tasks=dict(speech=dict(data=data)))
        last = dict(
            name="teach",
            teacher="last",
            outputs=("audio>text", "logits/name"),
            encode=classes,
        )
        kept = dict(
            coconut=dict(weight=1.0, old_classes=old),
            logit_distillation=dict(
                weight=1.0, head="name", teacher="last/logits/name", classes=old
            ),
        )
        speech = dict(data=data, before=dict(last=last), objectives=kept)
        teacher = dict(source="{stages." + stage + "}")
        return dict(teachers=dict(last=teacher), tasks=dict(speech=speech))

    c.stages = (
        dict(name="first"),
        dict(name="second", **after("first", 1)),
        dict(name="third", **after("second", 2)),
    )
    return c
