"""Runs in miniature of every kind of system, which take records whose numbers their steps tell."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training"), str(TESTS / "models")]

import tiny  # noqa: E402

STEPS = 64  # of every stage: room for all faults
EVERY = 4  # steps between two checkpoints
B = 32  # rows: 576 records are 18 steps
SIZE = 16  # pixels

NET = dict(name="efficientnet", stem=8, stages=("fused_r1_k3_s2_e1_o8",), drop_connect=0.2)
BERT = dict(name="bert", variant="tiny", width=16, depth=1, heads=2, positions=16)
MODELS = dict(
    align=dict(name="align", image=NET, text=BERT, init_temperature=0.1),
    coca=tiny.COCA,
    imp_moe=dict(tiny.IMP, depth=2, moe=dict(last=1, experts=2)),
)
IDS = dict(ids=dict(name="row_ids", weight=0.0))
FIELDS = tiny.fields(group_id=dict(name="group", column="key"))
CLUSTERS = dict(name="kmeans", k=3, features=None, of="pair", text="name/en")
IN_CLUSTERS = dict(
    tables=dict(clusters="{stages.one}/tables/clusters"),
    sampler=dict(name="per_cluster", table="clusters"),
)


def shared(model, tasks, **changes):
    root = tiny.config(
        model=model,
        tasks=tasks,
        steps=STEPS,
        optim=dict(lr=1e-3, warmup=4, ema=0.9, eps=1e-3),
        checkpoint=dict(every=EVERY, keep=4),
        plugins=(str(TESTS / "training" / "once_plugin.py"), str(TESTS / "chaos" / "slowly.py")),
    )
    return {**root.to_dict(), **changes}


def pairs(source=tiny.TRAIN, fields=FIELDS, **objectives):
    data = tiny.data(source=source, batch=B, fields=fields)
    return dict(data=data, objectives={**objectives, **IDS})


def align():
    """Batch statistics and an average of the weights beside the parameters."""
    return shared(MODELS["align"], dict(pairs=pairs(align=1.0)))


def coca():
    return shared(MODELS["coca"], dict(pairs=pairs(align=1.0, captioning=2.0)))


def imp_moe():
    """Pictures and clips by turns."""
    source = dict(tiny.TRAIN, clips=True)
    video = dict(name="frames", size=SIZE, frames=2)
    clips = {**FIELDS, "video": video}
    del clips["image"]
    tasks = dict(images=pairs(source, nce=1.0), clips=pairs(source, clips, nce=1.0))
    return shared(MODELS["imp_moe"], tasks, schedule=dict(name="round_robin"))


def staged():
    """Clusters of the first stage's embeddings, from which the second takes its batches."""
    root = shared(tiny.config().to_dict()["model"], dict(pairs=pairs(clip=1.0)))
    stages = (
        dict(name="one", after=dict(clusters=CLUSTERS)),
        dict(name="two", tasks=dict(pairs=dict(data=IN_CLUSTERS))),
    )
    return {**root, "stages": stages}


SYSTEMS = dict(align=align, coca=coca, imp_moe=imp_moe, staged=staged)


def write_config(path, name):
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({SYSTEMS[name]()!r})\n"
    path.write_text(text)
    return path
