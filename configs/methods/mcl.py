"""Multistage contrastive learning (MCL, Zhang et al. 2024, arXiv 2402.11816), on the generated
corpus: two stages.

The second stage's batches are of one cluster of the first stage's embeddings, so that what tells
the clusters apart helps it no more; the stages' embeddings are joined at evaluation. The paper has
10 clusters. A third stage would read both tables:

    after = dict(clusters=dict(name="kmeans", k=10, tables=dict(first=…), within=("first",)))

Stages with fresh weights are as in the paper's experiments with one modality; its CLIP starts every
stage from the same weights, which is `start=(dict(source=WORKDIR),)` in each.

launch/local.sh configs/methods/mcl.py
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=96, depth=3, heads=3, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=32,
    )
    c.preprocess = dict(image_size=48)
    c.tokenizer = dict(kind="unigram", vocab_size=128)
    shapes = lambda split: dict(name="shapes", size=48, split=split)
    augment = dict(rotate=10.0, zoom=(0.75, 1.2), shift=0.1, hue=8.0, outline=0.5, background=0.5)
    c.tasks = dict(
        pairs=dict(
            data=dict(
                source=shapes("train_a"),
                batch=64,
                fields=dict(
                    image=dict(name="picture", size=48, augment=augment),
                    text=dict(name="caption", columns="name/en", length=12),
                ),
            ),
            objectives=dict(clip=1.0),
        )
    )
    c.steps = 200
    c.optim = dict(name="adamw", lr=2e-3, warmup=30, weight_decay=0.05, b2=0.98)
    probe = lambda label: dict(
        name="linear_probe",
        train=shapes("train_a"),
        source=shapes("test_a"),
        label=label,
        gallery=0,
    )
    c.evals = {label: probe(label) for label in ("colour", "shape", "count")}
    c.checkpoint = dict(every=200)
    both = {
        f"joined_{label}": dict(name="ensemble", runs=("{stages.one}",), evaluator=probe(label))
        for label in ("colour", "shape", "count")
    }
    per_cluster = dict(
        tables=dict(clusters="{stages.one}/tables/clusters"),
        sampler=dict(name="per_cluster", table="clusters", leftover="dropped"),
    )
    c.stages = (
        dict(name="one", after=dict(clusters=dict(name="kmeans", k=10))),
        dict(name="two", start=(), tasks=dict(pairs=dict(data=per_cluster)), evals=both),
    )
    return c
