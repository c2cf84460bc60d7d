"""A whole run in miniature: generated pictures of 16 pixels, towers of a few thousand parameters."""

import ml_collections

from jaxvl.config import resolve
from jaxvl.training.experiment import Experiment

CORPUS = dict(name="shapes", size=16, variants=1)


def config(**changes) -> ml_collections.ConfigDict:
    """The miniature as a ConfigDict; `changes` replace keys of the root."""
    data = dict(corpus=CORPUS, split="train_a", batch=16, image_size=16, text_length=6, threads=2, augment=dict(rotate=10.0, hue=10.0))
    root = dict(
        model=dict(
            name="dual_encoder",
            image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
            text=dict(name="text_transformer", variant="Ti", width=16, depth=1, heads=2, pool="mean"),
            embed_dim=16,
        ),
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=64),
        tasks=dict(pairs=dict(data=data, objectives=dict(align=1.0))),
        steps=6,
        optim=dict(lr=1e-3, warmup=2, ema=0.9),
        mesh=dict(data=-1),
        checkpoint=dict(every=3),
        log=dict(every=1, tensorboard=False, report=False),
    )
    return ml_collections.ConfigDict({**root, **changes}, convert_dict=True)


def experiment(**changes) -> Experiment:
    return resolve(Experiment, config(**changes))
