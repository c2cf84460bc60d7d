"""CoLLAP (Wu et al. 2024) on the generated corpus: sounds in four clips, of which a text weighs
those that fit it. A name of one shape is heard in the first clip or two, the others are noise.

The paper's songs are five minutes long; its texts are cut into segments too, which is not here.

launch/local.sh configs/methods/collap.py
"""

import ml_collections

CLIPS = 4
SECONDS = 0.4


def get_config():
    c = ml_collections.ConfigDict()
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
        log_mel=dict(frame=512, step=100, bins=32, mean=-7.2, std=4.4),
        inputs=("spectrogram", "text"),
        pairs=("audio-text",),
        embed_dim=64,
        projection_hidden=128,
        init_temperature=0.1,
        scan=False,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split, clips=True)
    c.tasks = dict(
        songs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    waveform=dict(
                        name="waveform", columns="speech/en", seconds=SECONDS, parts=CLIPS
                    ),
                    text=dict(name="caption", columns="name/en", length=12),
                    group_id=dict(name="group", column="class_label"),
                ),
            ),
            objectives=dict(
                collap=dict(
                    weight=1.0,
                    clips="audio>text",
                    text="text>audio",
                    log_scale="log_scale/audio-text",
                    lengths="waveform_length",
                    duplicates="positive",
                )
            ),
        )
    )
    c.steps = 400
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    found = dict(
        name="cross_modal_retrieval",
        source=shapes("test_a"),
        pair=("waveform", "text"),
        waveform="speech/en",
        text="name/en",
        seconds=SECONDS,
        parts=CLIPS,
        group="class_label",
        gallery=0,
    )
    c.evals = dict(weighted=found, mean=dict(found, temperature=None))
    c.checkpoint = dict(every=400)
    return c
