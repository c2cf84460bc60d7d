"""CoCa learns to answer questions about generated scenes: no download, some minutes on two cores.

    launch/local.sh configs/coca_shapes_vqa.py

A caption of this source is a question with its answer ("where are the red stars? left"), so that
captioning alone trains it. `answers` chooses the likeliest of the train split's answers, `written`
takes what the model writes after the question, `likelihood` says how likely the texts are, and
`colour` and `count` are told from frozen features of other pictures. For VQAv2 or questions of your
own, take the source `questions`, whose texts are in the column `text`.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    image = dict(name="vit", variant="Ti/8", width=128, depth=3, heads=4, hidden=384, pool="mean")
    c.model = dict(
        name="coca",
        image=image,
        width=128,
        heads=4,
        hidden=384,
        unimodal=1,
        multimodal=2,
        queries=16,
        embed_dim=64,
        tied=True,
    )
    c.preprocess = dict(image_size=32)
    c.tokenizer = dict(kind="unigram", vocab_size=160)
    train, test = (
        dict(name="shapes_vqa", size=32, scenes=4000, split=split) for split in ("train", "test")
    )
    shapes = lambda split: dict(name="shapes", size=32, split=split)
    fields = dict(
        image=dict(name="picture", size=32, augment=dict(shift=0.05, hue=8.0, brightness=0.1)),
        text=dict(name="caption", columns="name/en", length=28),
    )
    data = dict(source=train, batch=64, fields=fields)
    c.tasks = dict(questions=dict(data=data, objectives=dict(captioning=1.0)))
    c.steps = 1500
    c.optim = dict(name="adamw", lr=2e-3, warmup=100, weight_decay=0.05, b2=0.98, ema=0.99)
    probe = dict(source=shapes("test_a"), train=shapes("train_a"))
    c.evals = dict(
        answers=dict(name="vqa", source=test, candidates=train, every=500),
        written=dict(name="vqa", source=test, method="generate"),
        likelihood=dict(name="likelihood", source=test, text="name/en", every=500),
        colour=dict(name="linear_probe", label="colour", features="mean_tokens", **probe),
        count=dict(name="attentional_probe", label="count", heads=4, epochs=5, **probe),
    )
    c.checkpoint = dict(every=500, best_metric="answers/vqa_acc")
    return c
