"""CLIP-MoE by its stages (Zhang et al. 2024, arXiv 2409.19291, diversified multiplet upcycling), on
the generated corpus.

A dense CLIP; from its weights three times MCL (`configs/methods/mcl.py`), which trains nothing but
the MLPs, so that each has learnt other features; then a model whose four experts of each layer are
these four MLPs, of which only the routers are trained: two experts a token, their weights scaled to
sum to 1.

The balance loss weighs 0.01. The release counts both choices of a token, over all layers of a tower
together: its loss is 2 where the load is even. Ours is 1 in each layer there, summed over layers.

launch/local.sh configs/methods/clip_moe.py
"""

import ml_collections

from jaxvl.adapters.upcycle import ALL_BUT_ROUTERS

ALL_BUT_MLPS = r"^(?!.*/mlp/)"
EXPERTS = 4


def get_config():
    c = ml_collections.ConfigDict()
    c.model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=64, depth=2, heads=2, pool="mean"),
        text=dict(name="text_transformer", variant="Ti", width=64, depth=1, heads=2, pool="mean"),
        embed_dim=64,
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
    c.steps = 60
    c.optim = dict(name="adamw", lr=2e-3, warmup=10, weight_decay=0.05, b2=0.98)
    c.evals = dict(unseen_style=dict(name="zero_shot", source=shapes("test_a"), gallery=0))
    c.checkpoint = dict(every=1000)
    c.stages = (dict(name="dense", steps=200, after=_clusters()), *_mcl(), _moe())
    return c


def _clusters(earlier: str | None = None) -> dict:
    """The job after a stage: clusters within those of all stages before it."""
    job = dict(name="kmeans", k=3)
    if earlier is not None:
        job |= dict(tables=dict(earlier=_table(earlier)), within=("earlier",))
    return dict(clusters=job)


def _table(stage: str) -> str:
    return f"{{stages.{stage}}}/tables/clusters"


def _mcl() -> list[dict]:
    """Stages that begin with the dense weights and train the MLPs, in batches of one cluster."""
    stages = []
    earlier = "dense"
    for i in range(1, EXPERTS):
        data = dict(
            tables=dict(clusters=_table(earlier)),
            sampler=dict(name="per_cluster", table="clusters", leftover="dropped"),
        )
        stages.append(
            dict(
                name=f"mcl_{i}",
                start="{stages.dense}",
                optim=dict(lr=1e-3, freeze=ALL_BUT_MLPS),
                tasks=dict(pairs=dict(data=data)),
                after=_clusters(earlier),
            )
        )
        earlier = f"mcl_{i}"
    return stages


def _moe() -> dict:
    """The model with experts, of which the routers are trained."""
    router = dict(name="token_choice", top=2, capacity_factor=None, renormalise=True)
    moe = dict(experts=EXPERTS, every=1, bias=True, router=router, dispatch="ragged")
    sources = ("dense", *(f"mcl_{i}" for i in range(1, EXPERTS)))
    return dict(
        name="moe",
        model=dict(image=dict(moe=moe), text=dict(moe=moe)),
        start=(dict(source=tuple(f"{{stages.{name}}}" for name in sources)),),
        optim=dict(lr=1e-3, freeze=ALL_BUT_ROUTERS),
        tasks=dict(
            pairs=dict(
                objectives=dict(clip=1.0, routing=dict(weight=1.0, losses=dict(balance=0.01)))
            )
        ),
    )
